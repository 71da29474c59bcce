"""Numeric formats: of a peer's weights, and which of them a client may call precise enough; of what travels.

A format is a name in the peer's record.  What is measured of each (relative error of a linear layer against float32)
is in docs/benchmarks.md; here is only their order.  No torch: the client's router asks for every peer it looks at.

A format promises how far a product is from that of the weights as they were loaded, not its bits:

    float32   the weights' own numbers, summed up in some order (1e-5); however they lie in memory, in 16 bits too where
              they were published so.
    int8      weights rounded to 255 levels of their output's largest, activations to 13 bits, 15 or not at all: within
              4e-3 of the exact product with those weights.

So two peers of one format may differ by that much, as two kinds of processor do; one peer gives a session the same
numbers among any others, within the order of sums in float32 and to the bit in int8.
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
"""The choices of a peer's operator: a format, "none" for that of the weights as loaded, or "auto"."""


def precision_rank(name: str) -> int:
    """The place of a format in the order of precision; a higher one is more precise, equals may stand for each other.

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
