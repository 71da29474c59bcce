"""A request's chain of peers: opens it, sends its steps, repairs it when a peer fails."""
