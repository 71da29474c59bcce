"""Packs the hidden states of a batch into the rows of a step, and unpacks the answers of a step into a batch."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .steps import BatchStep


@dataclass(frozen=True, slots=True)
class ForwardInputs:
    """The arguments of a forward, other than the hidden states that reach the blocks."""

    input_ids: torch.Tensor | None
    """(B, T)"""
    attention_mask: torch.Tensor | None
    """(B, columns so far + T), None: no padding"""
    position_ids: torch.Tensor | None
    """(B or 1, T)"""
    answers: int
    """How many of the last columns the head needs from the blocks; 0: all."""


def bytes_of_rows(tensor: torch.Tensor) -> list[bytes]:
    """Return each row's content for comparisons; as bytes, because numpy has no bfloat16."""
    rows = tensor.detach().cpu().contiguous().view(len(tensor), -1).view(torch.uint8).numpy()
    return [row.tobytes() for row in rows]


def pack(hidden: torch.Tensor, step: BatchStep) -> torch.Tensor:
    """Gather the tokens of each sender from its last columns: (B, T, H) -> (plan.tokens, H)."""
    assert step.plan is not None
    batch, count, size = hidden.shape
    hidden = hidden.detach()
    if step.plan.tokens == len(step.senders) * count:  # there is no padding
        every = len(step.senders) == batch
        return (hidden if every else hidden[list(step.senders)]).reshape(-1, size)
    rows = zip(step.senders, step.plan.rows, strict=True)
    return torch.cat([hidden[sender, count - piece.count :] for sender, piece in rows])


def unpack(answers: torch.Tensor, step: BatchStep, hidden: torch.Tensor) -> torch.Tensor:
    """Put the answers of each batch row into its last columns: (plan.answers, H) -> (B, T, H), zeros elsewhere."""
    assert step.plan is not None
    batch, count, size = hidden.shape
    rows = len(step.senders)
    assert answers.shape == (step.plan.answers, size), (answers.shape, step.plan.answers)
    if step.plan.answers == rows * count:  # everything is wanted
        answers = answers.view(rows, count, size)
        return answers if rows == batch else answers[list(step.receivers)]
    parts = answers.split([piece.answers for piece in step.plan.rows])
    output = torch.zeros_like(hidden)
    for row, receiver in enumerate(step.receivers):
        part = parts[receiver]
        output[row, count - part.shape[0] :] = part
    return output
