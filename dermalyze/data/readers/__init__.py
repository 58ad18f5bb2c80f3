"""Readers of data folders: one module for each format, and what they share in `dataset`."""
