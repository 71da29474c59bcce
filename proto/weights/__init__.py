"""How this machine holds matrices of weights so that their products are fast: peers and clients try the same forms."""
