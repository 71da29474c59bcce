"""One session at a peer: admission, the order of its steps, pushing, replay, hand-over."""
