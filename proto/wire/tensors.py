"""Tensors as bytes: little-endian, row-major, values only; dtype and shape travel separately.

Sizes are checked against dtype, shape and a limit before anything is allocated.  A decoded tensor shares the memory of
the bytes if it can: it is read-only, and must be copied before it is changed.
"""

from __future__ import annotations

import functools
import math
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from ..errors import RemoteProtocolError, UsageError
from .precision import STREAM_FORMATS, WIRE_FORMATS

MAX_DIMENSIONS = 8
INT8_GROUP = 64
"""Number of neighbouring values of a token that share a scale in the int8 format."""

DTYPES: Mapping[str, torch.dtype] = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "int64": torch.int64,
    "int32": torch.int32,
    "int8": torch.int8,
    "uint8": torch.uint8,
}
"""The dtypes that may be sent, by their names on the wire."""

_NAMES = {dtype: name for name, dtype in DTYPES.items()}

if sys.byteorder != "little":
    raise ImportError("tensors are sent in little-endian order, which this machine does not use")

with warnings.catch_warnings():
    # torch says once per process that decoded bytes are not writable, which is what the module docstring says.
    warnings.simplefilter("ignore")
    torch.frombuffer(b"\0", dtype=torch.uint8)


def dtype_name(dtype: torch.dtype) -> str:
    """The name of a dtype on the wire. Raises UsageError for a dtype that cannot be sent."""
    if dtype not in _NAMES:
        raise UsageError(f"tensors of {dtype} cannot be sent")
    return _NAMES[dtype]


def encode_tensor(tensor: torch.Tensor) -> bytes:
    """The values of a tensor of one of `DTYPES`, copied."""
    dtype_name(tensor.dtype)
    values = tensor.detach().cpu().contiguous()
    if values.dtype == torch.bfloat16:
        values = values.view(torch.int16)  # numpy has no bfloat16
    return values.numpy().tobytes()


def decode_tensor(dtype: str, shape: Sequence[int], data: bytes, *, max_bytes: int) -> torch.Tensor:
    """Decode a tensor of that dtype and shape from its values; the result is read-only and shares the memory of `data`.

    Raises RemoteProtocolError for an unknown dtype, an impossible shape, or a size that does not match or exceeds
    `max_bytes`.
    """
    if dtype not in DTYPES:
        raise RemoteProtocolError(f"tensors of dtype {dtype[:32]!r} are not known")
    if len(shape) > MAX_DIMENSIONS or any(size < 0 for size in shape):
        raise RemoteProtocolError(f"a tensor has an impossible shape of {len(shape)} dimensions")
    wanted = math.prod(shape) * DTYPES[dtype].itemsize
    if wanted > max_bytes:
        raise RemoteProtocolError(f"a tensor of {wanted} bytes is larger than {max_bytes}")
    if wanted != len(data):
        raise RemoteProtocolError(f"a tensor of {wanted} bytes came with {len(data)}")
    if not data:
        return torch.empty(tuple(shape), dtype=DTYPES[dtype])
    return torch.frombuffer(data, dtype=DTYPES[dtype]).view(tuple(shape))


@dataclass(frozen=True, slots=True)
class WireFormat:
    """The format of activations between two peers: every token takes `token_bytes`, in order.

    A run of tokens can therefore be split and joined as bytes.  float32, bfloat16 and float16 are the values
    themselves; int8 has, per token, a float16 scale for each group of 64 values, and then the values as multiples of
    their scale; values beyond 127 * 65504 saturate.
    """

    name: str
    hidden_size: int
    token_bytes: int
    _encode: Callable[[torch.Tensor], torch.Tensor]
    _decode: Callable[[torch.Tensor], torch.Tensor]

    @classmethod
    @functools.lru_cache(maxsize=64)  # every step asks for some; unknown names are not cached
    def named(cls, name: str, hidden_size: int) -> WireFormat:
        """One of "float32", "bfloat16", "float16", "int8". Raises UsageError for another name."""
        if name == "int8":
            groups = math.ceil(hidden_size / INT8_GROUP)
            return cls(
                name,
                hidden_size,
                2 * groups + hidden_size,
                _quantize_int8,
                lambda packed: _dequantize_int8(packed, groups),
            )
        if name not in STREAM_FORMATS:
            raise UsageError(f"wire format {name[:32]!r} is not known", hint=f"Use {', '.join(WIRE_FORMATS)}.")
        dtype = DTYPES[name]
        return cls(
            name,
            hidden_size,
            hidden_size * dtype.itemsize,
            lambda hidden: _saturating_cast(hidden, dtype).view(torch.uint8),
            lambda packed: packed.view(dtype),
        )

    def encode(self, hidden: torch.Tensor) -> bytes:
        """(T, hidden_size) of any floating dtype -> T * token_bytes bytes.

        A value too large for a 16-bit format becomes the largest finite one.
        """
        if hidden.shape[0] == 0:
            return b""
        return encode_tensor(self._encode(hidden.detach().cpu().contiguous()))

    def decode(self, data: bytes) -> torch.Tensor:
        """T * token_bytes bytes -> (T, hidden_size), in the dtype of the format (float32 for int8).

        Shares the memory of `data`, read-only, except for int8. Raises RemoteProtocolError if a token is cut.
        """
        tokens, rest = divmod(len(data), self.token_bytes)
        if rest:
            raise RemoteProtocolError(f"{len(data)} bytes are not a whole number of tokens of {self.token_bytes} bytes")
        return self._decode(decode_tensor("uint8", (tokens, self.token_bytes), data, max_bytes=len(data)))

    def is_finite(self, data: bytes) -> bool:
        """Whether all values of whole tokens are finite. Raises RemoteProtocolError if a token is cut."""
        return all_finite(self.decode(data))


def all_finite(values: torch.Tensor) -> bool:
    """Whether all values of a floating tensor are finite.

    Looks at minimum and maximum, which propagate NaN: takes a third to a tenth of the time of `isfinite`.
    """
    return values.numel() == 0 or all(math.isfinite(end.item()) for end in torch.aminmax(values))


def finite_rows(values: torch.Tensor) -> int:
    """Return how many leading rows of (T, H) have only finite values."""
    if all_finite(values):
        return len(values)
    return int(values.isfinite().all(dim=1).int().argmin())


def _saturating_cast(values: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    limits = torch.finfo(dtype)
    if limits.max >= torch.finfo(values.dtype).max:
        return values.to(dtype)
    finite = values.clamp(limits.min, limits.max)
    return torch.where(values.isinf(), values, finite).to(dtype)  # NaN and infinity must be seen at the other end


def _quantize_int8(hidden: torch.Tensor) -> torch.Tensor:
    """(T, H) floating -> (T, 2 * groups + H) uint8."""
    tokens, size = hidden.shape
    groups = math.ceil(size / INT8_GROUP)
    padded = torch.nn.functional.pad(hidden.float(), (0, groups * INT8_GROUP - size)).view(tokens, groups, INT8_GROUP)
    largest = padded.abs().amax(dim=-1) / 127
    scales = _saturating_cast(largest, torch.float16)
    # Divide by the scale that the receiver will see; a group too small for float16 becomes zero.
    divisor = scales.float().masked_fill(scales == 0, math.inf)
    steps = (padded / divisor[..., None]).round_().clamp_(-127, 127).to(torch.int8)
    return torch.cat([scales.view(torch.uint8), steps.view(tokens, -1)[:, :size].view(torch.uint8)], dim=1)


def _dequantize_int8(packed: torch.Tensor, groups: int) -> torch.Tensor:
    """(T, 2 * groups + H) uint8 -> (T, H) float32."""
    scales = packed[:, : 2 * groups].reshape(-1).view(torch.float16).float().view(-1, groups)
    steps = packed[:, 2 * groups :].view(torch.int8).float()
    return steps * scales.repeat_interleave(INT8_GROUP, dim=1)[:, : steps.shape[1]]
