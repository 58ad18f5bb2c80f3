"""Losses, schedule, the loop, checkpoints, a run from start to end."""
