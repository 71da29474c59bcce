"""The work of one session on a peer: steps in order, computed, kept for replay, passed on."""
