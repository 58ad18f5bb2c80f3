"""Intervals, tests, comparisons and subgroups."""
