"""Access to the endpoint: API keys, the limits of each, and which web pages may send requests at all."""
