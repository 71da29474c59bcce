"""The public page of a swarm: a node that only looks, and shows all views of one snapshot, as pages and as JSON."""
