"""The peers of a swarm: signed records that expire, and the directory in which they are announced and found."""
