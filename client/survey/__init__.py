"""Looks at a swarm without taking part in it, for commands and dashboard: its peers, and why a chain is chosen."""
