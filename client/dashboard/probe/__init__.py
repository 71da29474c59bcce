"""The synthetic probe: a program of its own opens the model's files and generates through the swarm, as users do."""
