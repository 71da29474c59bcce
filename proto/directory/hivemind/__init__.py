"""The directory in hivemind's DHT, and everything that knows hivemind."""
