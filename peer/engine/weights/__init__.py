"""The numeric form in which weights are held, and the choice of the one that this machine computes fastest."""
