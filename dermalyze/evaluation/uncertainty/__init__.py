"""Calibrators, prediction sets, abstention and the out-of-distribution score."""
