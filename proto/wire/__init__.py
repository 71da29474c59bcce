"""What is said in a session, as checked values: steps, handshakes, tensors, replay. Nothing here does I/O."""
