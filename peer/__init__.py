"""A peer, `swarm-peer`: join, load, serve, announce, drain."""
