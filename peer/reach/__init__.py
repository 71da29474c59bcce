"""How this peer is reached: checks of its address, the relays that it uses, and the relaying that it offers."""
