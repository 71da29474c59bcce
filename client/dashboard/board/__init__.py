"""Decides what is shown: pure functions from a snapshot to frozen values, shown by pages and JSON alike."""
