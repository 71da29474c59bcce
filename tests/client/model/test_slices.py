"""Slices of a model's blocks: which there are, and what they refuse before a peer is asked.

That they are exact is shown by real peers in tests/swarm/test_generate.py.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from blockswarm.proto.errors import UsageError
from support.local_chain import LocalChain


def test_they_are_named_as_in_a_list(model: Any) -> None:
    assert len(model.blocks) == 6
    assert [str(model.blocks[index].blocks) for index in (0, -1)] == ["0:1", "5:6"]
    assert [str(model.blocks[part].blocks) for part in (slice(1, 3), slice(4, None), slice(-2, 100))] == [
        "1:3",
        "4:6",
        "4:6",
    ]


@pytest.mark.parametrize("part", [slice(3, 3), slice(0, 6, 2), slice(4, 1), slice(6, None)])
def test_what_is_no_run_of_blocks_is_refused(model: Any, part: slice) -> None:
    with pytest.raises(UsageError, match="no run of blocks"):
        model.blocks[part]


def test_a_block_that_the_model_does_not_have(model: Any) -> None:
    with pytest.raises(IndexError):
        model.blocks[6]


@pytest.mark.parametrize(
    ("hidden", "words"),
    [
        (torch.zeros(4, 64), "shape"),
        (torch.zeros(1, 4, 63), "shape"),
        (torch.zeros(1, 0, 64), "shape"),
        (torch.zeros(1, 4, 64, requires_grad=True), "gradients"),
    ],
)
def test_other_inputs_are_refused_before_a_peer_is_asked(
    model: Any, chain: LocalChain, hidden: torch.Tensor, words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        model.blocks[1:3](hidden)
    assert not chain.sessions
