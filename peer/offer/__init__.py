"""The offer of a peer: the blocks that fit, their measured cost, and the record that says so."""
