"""Access to the endpoint: which key a request has, how much it may ask for, and which web pages may ask at all."""
