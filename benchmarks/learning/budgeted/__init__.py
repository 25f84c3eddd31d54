"""Trainings that end when the processor has spent its seconds on them: what they share, and a room for each use of them."""
