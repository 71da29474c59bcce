"""The program `swarm-client`: its commands, its options and what it prints."""
