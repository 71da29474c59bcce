"""The synthetic probe: a separate program that opens the model's files and generates through the swarm, like users."""
