"""Makes the decisions about a session's chain: events in, actions out; no I/O, no clock, no await."""
