"""The way into a session and the right to stay: checked openings, bounded handshakes and waits, the use of room."""
