"""Trainings that end when the processor has spent its seconds on them, and the tuning of their settings."""
