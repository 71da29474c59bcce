"""The inputs of a batch so far, column by column; it follows the crops and reorderings of the cache."""

from __future__ import annotations

import torch


class History:
    """Tensors (B, T, ...), one appended per forward, and concatenated only when they are read."""

    def __init__(self) -> None:
        self._parts: list[torch.Tensor] = []

    def append(self, part: torch.Tensor) -> None:
        self._parts.append(part)

    def joined(self) -> torch.Tensor:
        """Return all columns, (B, columns, ...); (0, 0) if there are none."""
        if len(self._parts) > 1:
            self._parts = [torch.cat([part.cpu() for part in self._parts], dim=1)]
        return self._parts[0] if self._parts else torch.empty((0, 0), dtype=torch.long)

    def crop(self, columns: int) -> None:
        """Keep the first columns."""
        self.replace(self.joined()[:, :columns])

    def replace(self, everything: torch.Tensor) -> None:
        self._parts = [everything] if everything.numel() else []

    def select(self, batch_rows: torch.Tensor) -> None:
        """Keep the given rows in the given order; a row may occur several times."""
        self._parts = [self.joined()[batch_rows.cpu()]]
