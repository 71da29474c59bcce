"""The inputs of a batch so far, column by column, kept in step with what `generate` does to its cache."""

from __future__ import annotations

import torch


class History:
    """Tensors (B, T, ...), appended per forward and joined only when somebody looks."""

    def __init__(self) -> None:
        self._parts: list[torch.Tensor] = []

    def append(self, part: torch.Tensor) -> None:
        self._parts.append(part)

    def joined(self) -> torch.Tensor:
        """(B, columns, ...); (0, 0) if there is nothing."""
        if len(self._parts) > 1:
            self._parts = [torch.cat([part.cpu() for part in self._parts], dim=1)]
        return self._parts[0] if self._parts else torch.empty((0, 0), dtype=torch.long)

    def crop(self, columns: int) -> None:
        """Keep the first columns."""
        self.replace(self.joined()[:, :columns])

    def replace(self, everything: torch.Tensor) -> None:
        self._parts = [everything] if everything.numel() else []

    def select(self, batch_rows: torch.Tensor) -> None:
        """Keep these rows, in this order; one may come several times."""
        self._parts = [self.joined()[batch_rows.cpu()]]
