"""Tensors arrive as they were sent, and nothing that arrives is believed before its size is checked."""

from __future__ import annotations

import math
import struct
import warnings

import numpy as np
import pytest
import torch
from blockswarm.proto.errors import RemoteProtocolError, UsageError
from blockswarm.proto.wire.tensors import (
    DTYPES,
    WireFormat,
    all_finite,
    decode_tensor,
    dtype_name,
    encode_tensor,
    finite_rows,
)
from hypothesis import given
from hypothesis import strategies as st

EXACT_FORMATS = ("float32", "bfloat16", "float16")
shapes = st.lists(st.integers(0, 5), max_size=4)


def random_tensor(shape: list[int], dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(shape, generator=generator) * 50).to(dtype)


@given(shape=shapes, name=st.sampled_from(sorted(DTYPES)))
def test_a_tensor_arrives_as_it_was_sent(shape: list[int], name: str) -> None:
    tensor = random_tensor(shape, DTYPES[name])
    arrived = decode_tensor(dtype_name(tensor.dtype), shape, encode_tensor(tensor), max_bytes=1 << 20)
    assert arrived.dtype == tensor.dtype
    assert torch.equal(arrived, tensor)


def test_the_bytes_are_little_endian_and_row_after_row() -> None:
    """Against struct and numpy: another implementation must be able to read them."""
    assert encode_tensor(torch.tensor([[1.5, -2.0], [0.25, 8.0]])) == struct.pack("<4f", 1.5, -2.0, 0.25, 8.0)
    assert encode_tensor(torch.tensor([1.5], dtype=torch.bfloat16)) == b"\xc0\x3f"
    assert encode_tensor(torch.tensor([1, 258], dtype=torch.int64)) == np.array([1, 258], "<i8").tobytes()


def test_a_view_is_sent_in_its_own_order() -> None:
    tensor = torch.arange(6, dtype=torch.float32).view(2, 3)
    assert encode_tensor(tensor.T) == struct.pack("<6f", 0, 3, 1, 4, 2, 5)


def test_decoding_copies_nothing_and_warns_about_nothing() -> None:
    data = encode_tensor(torch.arange(4, dtype=torch.float32))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        first, second = (decode_tensor("float32", [4], data, max_bytes=16) for _ in range(2))
    assert first.data_ptr() == second.data_ptr()


@pytest.mark.parametrize(
    ("dtype", "shape", "size"),
    [
        ("float64", [1], 8),
        ("complex" * 1000, [1], 4),
        ("float32", [2], 4),
        ("float32", [1], 8),
        ("float32", [-1, -1], 4),
        ("float32", [1] * 9, 4),
        ("float32", [1 << 40, 1 << 40], 4),
        ("float32", [100], 400),
        ("float32", [0], 4),
    ],
)
def test_sizes_that_do_not_fit_are_refused(dtype: str, shape: list[int], size: int) -> None:
    with pytest.raises(RemoteProtocolError):
        decode_tensor(dtype, shape, bytes(size), max_bytes=64)


def test_a_dtype_that_does_not_travel_is_refused() -> None:
    with pytest.raises(UsageError):
        encode_tensor(torch.zeros(1, dtype=torch.complex64))


@given(name=st.sampled_from(EXACT_FORMATS), tokens=st.integers(0, 5), hidden_size=st.integers(1, 130))
def test_activations_in_their_own_format_are_exact(name: str, tokens: int, hidden_size: int) -> None:
    wire = WireFormat.named(name, hidden_size)
    hidden = random_tensor([tokens, hidden_size], DTYPES[name])
    data = wire.encode(hidden)
    assert len(data) == tokens * wire.token_bytes
    assert torch.equal(wire.decode(data), hidden)


@given(
    name=st.sampled_from((*EXACT_FORMATS, "int8")),
    hidden_size=st.integers(1, 130),
    cut=st.integers(0, 4),
)
def test_tokens_can_be_cut_and_joined_as_bytes(name: str, hidden_size: int, cut: int) -> None:
    """The replay buffer keeps activations by position, and never decodes them."""
    wire = WireFormat.named(name, hidden_size)
    hidden = random_tensor([4, hidden_size], torch.float32)
    assert wire.encode(hidden[:cut]) + wire.encode(hidden[cut:]) == wire.encode(hidden)
    whole = wire.decode(wire.encode(hidden))
    assert torch.equal(wire.decode(wire.encode(hidden)[cut * wire.token_bytes :]), whole[cut:])


@given(tokens=st.integers(1, 4), hidden_size=st.integers(1, 200), magnitude=st.floats(1e-3, 1e4))
def test_int8_is_off_by_at_most_half_a_step_of_its_group(tokens: int, hidden_size: int, magnitude: float) -> None:
    wire = WireFormat.named("int8", hidden_size)
    hidden = random_tensor([tokens, hidden_size], torch.float32) * magnitude
    error = (wire.decode(wire.encode(hidden)) - hidden).abs()
    for start in range(0, hidden_size, 64):
        group = hidden[:, start : start + 64].abs().amax(dim=1, keepdim=True)
        # Half a step, and what a float16 scale (11 bits) can be off over up to 127 steps.
        assert (error[:, start : start + 64] <= group * (0.5 / 127 + 2**-10) + 1e-4).all()


def test_int8_survives_zeros_and_huge_values() -> None:
    wire = WireFormat.named("int8", 128)
    hidden = torch.cat([torch.zeros(1, 64), torch.full((1, 64), 1e38)], dim=1)
    arrived = wire.decode(wire.encode(hidden))
    assert (arrived[:, :64] == 0).all()
    assert torch.isfinite(arrived).all()


def test_int8_takes_a_quarter_of_float32() -> None:
    assert WireFormat.named("int8", 4096).token_bytes / WireFormat.named("float32", 4096).token_bytes < 0.26


def test_values_too_large_for_float16_stay_finite() -> None:
    wire = WireFormat.named("float16", 2)
    assert torch.equal(wire.decode(wire.encode(torch.tensor([[1e6, -1e6]]))).float(), torch.tensor([[65504.0, -65504]]))


def test_a_cut_token_is_refused() -> None:
    with pytest.raises(RemoteProtocolError):
        WireFormat.named("float32", 4).decode(bytes(17))


def test_an_unknown_format_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="int4"):
        WireFormat.named("int4", 64)


@pytest.mark.parametrize("computed", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["float32", "bfloat16", "float16", "int8"])
def test_every_compute_dtype_can_be_sent_in_every_format(computed: torch.dtype, name: str) -> None:
    """A bf16 peer answers clients that ask for float32, and the other way round."""
    wire = WireFormat.named(name, 64)
    hidden = torch.linspace(-3, 3, 128).view(2, 64).to(computed)
    received = wire.decode(wire.encode(hidden))
    torch.testing.assert_close(received.float(), hidden.float(), atol=0.03, rtol=0.01)
    if name == "float32":
        assert torch.equal(received, hidden.float())


@pytest.mark.parametrize("name", ["float32", "bfloat16", "float16", "int8"])
def test_values_that_are_no_numbers_are_found(name: str) -> None:
    wire = WireFormat.named(name, 70)
    assert wire.is_finite(wire.encode(torch.randn(3, 70)))
    bad = torch.randn(3, 70)
    bad[1, 69] = float("nan")
    assert not wire.is_finite(wire.encode(bad))
    bad[1] = float("nan")
    assert wire.decode(wire.encode(bad)).isnan().any(dim=1).tolist() == [False, True, False]


def test_rows_are_counted_up_to_one_that_is_not_finite() -> None:
    values = torch.randn(4, 3)
    assert (finite_rows(values), finite_rows(values[:0])) == (4, 0)
    values[3, 0] = math.inf
    assert finite_rows(values) == 3
    values[1, 2] = math.nan
    assert finite_rows(values) == 1
    values[0] = -math.inf
    assert finite_rows(values) == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_one_value_that_is_no_number_is_found_anywhere(dtype: torch.dtype) -> None:
    values = torch.full((3, 70), torch.finfo(dtype).max, dtype=dtype)
    assert all_finite(values)
    assert all_finite(-values)
    assert all_finite(values[:0])
    for bad in (math.nan, math.inf, -math.inf):
        for place in (0, 101, 209):
            spoilt = values.clone()
            spoilt.view(-1)[place] = bad
            assert not all_finite(spoilt)
