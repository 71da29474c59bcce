"""The simulated world: servers, distances, requests, and when peers join and leave."""
