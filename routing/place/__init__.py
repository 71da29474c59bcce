"""Which peer hosts which blocks, for how many concurrent sessions (R), and when a peer should move."""
