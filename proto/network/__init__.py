"""How a node is reached: addresses and authenticated channels."""
