"""Metrics, predictions as a table, plots."""
