"""The answers to steps that are under way, without a network."""

from __future__ import annotations

from collections.abc import Callable

import torch


class Answered:
    """They are here."""

    def __init__(self, answers: torch.Tensor) -> None:
        self._answers = answers

    def done(self) -> bool:
        return True

    def call_when_done(self, wake: Callable[[], object]) -> None:
        wake()

    def result(self) -> torch.Tensor:
        return self._answers


class Late:
    """They come when they have been asked about a few times; the one that waits is woken each time."""

    def __init__(self, compute: Callable[[], torch.Tensor], patience: int) -> None:
        self._compute = compute
        self._patience = patience
        self._wake: Callable[[], object] = lambda: None
        self._answers: torch.Tensor | None = None

    @property
    def answered(self) -> bool:
        return self._answers is not None or self._patience < 0

    def done(self) -> bool:
        self._patience -= 1
        self._wake()
        return self.answered

    def call_when_done(self, wake: Callable[[], object]) -> None:
        self._wake = wake
        wake()

    def result(self) -> torch.Tensor:
        if self._answers is None:
            self._answers = self._compute()
        return self._answers
