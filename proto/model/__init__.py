"""How a model is read: from a folder or a hub, one block at a time, cut at both ends of its list of blocks."""
