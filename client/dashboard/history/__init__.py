"""Remembers probes, counts and events over restarts, in one SQLite file of bounded size and age."""
