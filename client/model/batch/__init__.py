"""Maps a batch of `generate` to the peers' rows: its padding, its steps and its tensors; no network."""
