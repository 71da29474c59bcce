"""The simulator, `swarm-sim`: the product's own decisions and the published ones, on a virtual clock."""
