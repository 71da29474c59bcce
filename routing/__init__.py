"""Decisions, pure: a snapshot of the swarm goes in, a choice comes out; peers, clients and the simulator share them."""
