"""The model that users see: transformers' own `generate`, with the blocks at the peers."""
