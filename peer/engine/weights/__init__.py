"""In which numeric form the weights are held, and which form this machine computes fastest."""
