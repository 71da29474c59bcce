"""Parts of the program `swarm-peer` that talk to people."""
