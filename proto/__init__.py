"""The agreement between two nodes: errors, identities and messages, and how a model is cut into blocks."""
