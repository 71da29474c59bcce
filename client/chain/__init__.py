"""A request's chain: opened, fed with steps, repaired when a peer fails."""
