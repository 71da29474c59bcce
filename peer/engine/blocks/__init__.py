"""How blocks are computed: the family's own layers over packed rows, and which families may be served."""
