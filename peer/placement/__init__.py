"""Where this peer serves: what it knows of the swarm, and the agent that claims, loads and moves."""
