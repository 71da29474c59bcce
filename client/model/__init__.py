"""The model that users call: transformers' own `generate`, with the blocks at the peers."""
