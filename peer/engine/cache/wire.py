"""The attention cache of a session as bytes for another peer, in the safetensors format; nothing is unpickled.

The tensors are called "row.block.k" and "row.block.v", with the block's index in the model; an empty row has none.
Names, dtypes and shapes that arrive are checked before any bytes become a tensor.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from safetensors import SafetensorError, deserialize
from safetensors.torch import save

from ....proto.errors import RemoteProtocolError
from ....routing.swarm import BlockRange
from .row import BlockKV

_DTYPES: Mapping[torch.dtype, str] = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}
_HEADER_BYTES = 1024
_TENSOR_HEADER_BYTES = 256
"""More than the name, dtype, shape and offsets of one tensor take."""


def largest_size(lengths: Sequence[int], blocks: BlockRange, kv_bytes_per_token: int) -> int:
    """Upper bound on the bytes of a cache of rows of `lengths` tokens; an empty row has no tensors, so it has none."""
    header = _HEADER_BYTES + _TENSOR_HEADER_BYTES * 2 * len(blocks) * sum(map(bool, lengths))
    return header + sum(lengths) * len(blocks) * kv_bytes_per_token


def encode_rows(rows: Sequence[Sequence[BlockKV]], blocks: BlockRange) -> bytes:
    """Encode the cached tokens of every row, given block by block as `RowKV.export` does."""
    tensors = {}
    for index, row in enumerate(rows):
        for block, content in zip(blocks if row else (), row, strict=True):
            tensors[f"{index}.{block}.k"] = content.keys.cpu().contiguous()
            tensors[f"{index}.{block}.v"] = content.values.cpu().contiguous()
    return bytes(save(tensors))


def decode_rows(
    data: bytes, lengths: Sequence[int], blocks: BlockRange, specimen: Sequence[BlockKV]
) -> list[list[BlockKV]]:
    """Decode the rows that `encode_rows` was given, of exactly these lengths.

    `specimen` is the cache of one token in each block of this peer: it gives the heads, sizes, dtype and device.
    Raises RemoteProtocolError if the data is anything else.
    """
    try:
        found = dict(deserialize(data))
    except SafetensorError as error:
        raise RemoteProtocolError(f"an attention cache is not readable: {error}") from None

    def take(name: str, tokens: int, like: torch.Tensor) -> torch.Tensor:
        tensor = found.pop(name, None)
        heads, _, size = like.shape
        if tensor is None or tensor["dtype"] != _DTYPES[like.dtype] or list(tensor["shape"]) != [heads, tokens, size]:
            raise RemoteProtocolError(f"tensor {name} of an attention cache is not what this peer computes with")
        return torch.frombuffer(tensor["data"], dtype=like.dtype).view(heads, tokens, size).to(like.device)

    rows = [
        [
            BlockKV(take(f"{row}.{block}.k", length, like.keys), take(f"{row}.{block}.v", length, like.values))
            for block, like in zip(blocks, specimen, strict=True)
        ]
        if length
        else []
        for row, length in enumerate(lengths)
    ]
    if found:
        raise RemoteProtocolError(f"an attention cache has {len(found)} tensors too many")
    return rows
