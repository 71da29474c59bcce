"""The computation of blocks: the family's own layers over packed rows, and which families can be served."""
