"""Which sessions get room on a peer, and in which order the others wait for it."""
