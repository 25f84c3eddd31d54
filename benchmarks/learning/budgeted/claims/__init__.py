"""What tuned settings and their rivals do on the claim tasks, in seconds to a score."""
