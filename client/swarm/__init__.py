"""What this client knows of the swarm, and which peers it chooses."""
