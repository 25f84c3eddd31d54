"""What branching costs."""
