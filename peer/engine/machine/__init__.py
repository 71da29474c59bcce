"""Measurements of this machine, kept from one start to the next; and its pages of memory."""
