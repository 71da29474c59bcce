"""The values of a session, checked once: steps, handshakes, tensors, replay. Nothing here does I/O."""
