"""Keeps probes, counts and events across restarts, in one SQLite file of bounded size and age."""
