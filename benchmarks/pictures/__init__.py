"""What the README and the documentation show: the main job's default run, its agents, and screens of the commands."""
