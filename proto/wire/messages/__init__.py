"""The messages of swarm.proto as frozen values: their limits, one codec for each, and the frames of the four calls."""
