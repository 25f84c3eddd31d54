"""Trials of settings: what they may be, which come first, and how the finished ones rank."""
