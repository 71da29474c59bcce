"""What a peer says of itself: the blocks that fit, their measured cost, the room that becomes free."""
