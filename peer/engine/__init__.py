"""How a peer computes: one thread, and one step for all sessions that have new tokens."""
