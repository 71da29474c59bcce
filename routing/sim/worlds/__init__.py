"""What is simulated: servers, distances, requests, and when peers join and leave."""
