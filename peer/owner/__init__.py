"""How much of the machine a peer leaves to its owner."""
