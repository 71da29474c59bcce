"""The numbers that weights are made of for the compiled product."""

from __future__ import annotations

import enum


class Element(enum.Enum):
    """The numbers of a weight; each is a float32 number as well, for int8 up to a factor per output."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"
    INT8 = "int8"

    @property
    def nbytes(self) -> int:
        return {"float32": 4, "bfloat16": 2, "float16": 2, "int8": 1}[self.value]

    @property
    def group(self) -> int:
        """Outputs that lie together: a vector of each of them is a cache line, or less."""
        return 2 if self is Element.FLOAT32 else 4
