"""Bounds for the numbers in a model's files, checked before anything is made of them.

A configuration costs its author nothing, and a number in it decides how many objects a program makes, or how large a
tensor is.  What such a number can be follows from the weights: they are there, and they have a size.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..errors import ModelMismatch, UsageError
from .folder import TensorInfo

MAX_UNUSED_COUNT = 4096
"""A count that the weights do not bear out may be this large: configurations have many that mean nothing to a model."""
MAX_BLOCK_DIGITS = 6
SPARE_ELEMENTS = 1 << 22
"""Elements that a model may have beyond twice those of its weights: small tables that are computed."""

_COUNTS = re.compile(r"layer|block|expert|depth|labels|head|group|codebook", re.IGNORECASE)
_BLOCK_COUNTS = frozenset({"num_hidden_layers", "n_layer", "n_layers"})
_TEXT_PARTS = ("text_config", "llm_config", "language_config", "thinker_config", "talker_config", "text_encoder")
_TWO_STACKS = frozenset({"encoder", "decoder", "generator", "encoder_layers", "decoder_layers", "num_decoder_layers"})
_SIZES = ("num_hidden_layers", "hidden_size", "vocab_size")


def check_counts(values: Mapping[str, Any], tensors: Sequence[TensorInfo], file: str) -> None:
    """Look through a configuration as it was read, at any depth, for numbers of things that nobody can have.

    Programs that read it make lists of that length. Raises UsageError.
    """
    most = max(MAX_UNUSED_COUNT, len(tensors), _largest_dimension(tensors))
    for name, number in _numbers_in(values):
        if _COUNTS.search(name) and number > most:
            raise UsageError(
                f"{file} says {name[:80]} = {_shown(number)}, and the weights are {len(tensors)} tensors",
                hint="The configuration belongs to another model, or was tampered with.",
            )


def plain_block_count(values: Mapping[str, Any]) -> int | None:
    """The number of blocks, from a configuration as it was read; None where only its family's code can tell.

    Plain is a file in which one of the usual names has a number, on top or in the one part that is about text.
    """
    nested = [values[key] for key in _TEXT_PARTS if key in values]
    about_text = nested[0] if nested else values
    if len(nested) > 1 or not isinstance(about_text, Mapping) or (nested and _BLOCK_COUNTS & values.keys()):
        return None
    if _TWO_STACKS & (values.keys() | about_text.keys()) or values.get("is_encoder_decoder"):
        return None
    counts = [about_text[name] for name in _BLOCK_COUNTS & about_text.keys()]
    if len(counts) != 1 or type(counts[0]) is not int or counts[0] < 1 or "num_layers" in about_text:
        return None
    return counts[0]


def check_sizes(config: Any, tensors: Sequence[TensorInfo], file: str) -> None:
    """Check the sizes of a model, by the names that transformers gives them, against its weights. Raises UsageError."""
    largest, elements = _largest_dimension(tensors), sum(math.prod(tensor.shape) for tensor in tensors)
    most = {"num_hidden_layers": len(tensors), "hidden_size": largest, "vocab_size": largest}
    for name in _SIZES:
        value = getattr(config, name, None)
        if type(value) is not int or not 1 <= value <= most[name]:
            raise UsageError(
                f"{file} says {name} = {_shown(value)}, which does not fit the weights",
                hint="The configuration belongs to another model, or was tampered with.",
            )
    if config.hidden_size * config.vocab_size > 4 * elements + SPARE_ELEMENTS:
        raise UsageError(f"{file} describes an embedding that is larger than all of the weights")


def check_elements(wanted: int, held: int, what: str) -> None:
    """`wanted`: the elements that a model made from the configuration has, `held`: those of its weights.

    Raises ModelMismatch before memory is taken for what is not there.
    """
    if wanted > 2 * held + SPARE_ELEMENTS:
        raise ModelMismatch(f"the configuration describes {what} of {wanted} numbers, the weights have {held}")


def block_number(name: str) -> tuple[str, int] | None:
    """A tensor's name up to the number of its block ("model.layers."), and that number; None outside blocks.

    The number is the first part of the name that has digits only.
    """
    parts = name.split(".")
    for index, part in enumerate(parts):
        if part.isascii() and part.isdigit():
            is_block = index > 0 and len(part) <= MAX_BLOCK_DIGITS and any(parts[index + 1 :])
            return (".".join(parts[:index]) + ".", int(part)) if is_block else None
        if not part:
            return None
    return None


def _largest_dimension(tensors: Sequence[TensorInfo]) -> int:
    return max((max(tensor.shape, default=1) for tensor in tensors), default=1)


def _numbers_in(values: Any) -> Iterator[tuple[str, float]]:
    """The numbers of a JSON object with their names, in all objects inside it."""
    waiting: list[tuple[str, Any]] = [("", values)]
    while waiting:
        name, value = waiting.pop()
        if isinstance(value, Mapping):
            waiting += value.items()
        elif isinstance(value, list):
            waiting += ((name, inner) for inner in value)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield name, value


def _shown(value: object) -> str:
    if isinstance(value, int) and value.bit_length() > 64:
        return f"a number of {value.bit_length()} bits"
    return repr(value)[:40]
