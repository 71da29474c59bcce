"""Decides what is shown: pure functions from a snapshot to frozen values, which pages and JSON show alike."""
