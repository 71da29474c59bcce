"""Numeric formats of peers' weights, in order of precision, and formats of the values on the wire.

A format is a name in the peer's record.  Their measured errors (of a linear layer, relative to float32) are in
docs/benchmarks.md; here is only their order.  No torch: the client's router asks for every peer that it considers.

A format bounds the error of a product with the weights as they were loaded, and does not promise its bits:

    float32   the weights' own numbers, summed up in some order (1e-5); however they lie in memory, also in 16 bits if
              they were published in 16 bits.
    int8      weights rounded to 255 levels of their output's largest, activations to 13 bits, 15 or not at all: within
              4e-3 of the exact product with those weights.

So two peers of one format may differ by that much, as two kinds of processor do.  On one peer, a session's numbers do
not depend on other sessions: to the bit in int8, and up to the order of sums in float32.
"""

from __future__ import annotations

from collections.abc import Mapping

from ..errors import UsageError

_RANKS: Mapping[str, int] = {
    "float32": 3,
    "bfloat16": 2,  # more range, fewer digits than float16: neither is better than the other
    "float16": 2,
    "int8": 1,
    "int4": 0,
    "nf4": 0,
}

FORMATS = tuple(_RANKS)
"""The formats that a peer may announce, the most precise first."""

STREAM_FORMATS = ("float32", "bfloat16", "float16")
"""The dtypes that a peer's hidden states between blocks may have."""

WIRE_FORMATS = (*STREAM_FORMATS, "int8")
"""The formats in which hidden states may travel."""

QUANTIZATIONS = ("auto", "none", "int8", "int4", "nf4")
"""The choices of a peer's operator: a format, "none" for the format of the weights as loaded, or "auto"."""


def precision_rank(name: str) -> int:
    """The rank of a format by precision; a higher rank is more precise, and formats of equal rank are interchangeable.

    A name that this version does not know, from a newer peer for example, ranks below all others.
    """
    return _RANKS.get(name, -1)


def at_least(name: str, minimum: str) -> bool:
    """Whether the announced format `name` is as precise as `minimum`, which the user chose.

    Raises UsageError if `minimum` is no known format.
    """
    if minimum not in _RANKS:
        raise UsageError(f"there is no numeric format {minimum!r}", hint=f"Choose one of {', '.join(FORMATS)}.")
    return precision_rank(name) >= _RANKS[minimum]
