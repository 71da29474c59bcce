"""Attention caches: rows, their memory and forks, and the pages that outlive a session."""
