"""The client's view of the swarm, and the choice of a chain's peers."""
