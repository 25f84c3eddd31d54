"""Settings for the RL Zoo, an entry for each environment."""
