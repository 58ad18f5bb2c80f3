"""Metrics: each computed in one place."""
