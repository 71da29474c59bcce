"""A look at a swarm without taking part in it, for programs and dashboard: its peers, and why a chain is chosen."""
