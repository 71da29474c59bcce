"""The endpoint: serves a swarm as OpenAI's API, and never presents an incomplete answer as complete."""
