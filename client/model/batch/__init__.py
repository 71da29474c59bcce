"""A batch of `generate`: its padding, its steps, and its tensors as rows of the peers; no network."""
