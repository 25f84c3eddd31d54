"""The tasks that settings are tuned on, those that claims are made about, and their environments."""
