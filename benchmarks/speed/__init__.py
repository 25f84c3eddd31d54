"""What training and branching cost, and how fast the machines were that rows come from."""
