"""The endpoint: how programs that speak OpenAI's API use a swarm, and that no answer claims an end it did not have."""
