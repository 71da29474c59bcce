"""Which peers compute a request: the cheapest chain over all blocks, with the wait for room counted."""
