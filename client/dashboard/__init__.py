"""The public page of a swarm: a node that only looks, and shows each snapshot as pages and as JSON."""
