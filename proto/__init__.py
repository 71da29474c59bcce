"""What two nodes must agree on: errors, identities and messages, and which parts of a model belong to a block."""
