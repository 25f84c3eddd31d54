"""The main job: train several algorithms with identical hyperparameters and show how they compare."""
