"""Formats values: in words, as JSON, as CSV, as curves. Pure functions, like the boards."""
