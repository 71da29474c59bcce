"""The peer's compute engine: stages, attention caches, and the check that a family may be served at all."""
