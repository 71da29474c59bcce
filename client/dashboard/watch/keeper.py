"""Keeps the newest snapshot and wakes those that wait for the next one."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

from .sighting import DashboardSnapshot, ModelState


class SnapshotKeeper:
    """Replaced as a whole, so a page that is made in a thread sees one snapshot. Used on one loop."""

    def __init__(self) -> None:
        self._snapshot = DashboardSnapshot()
        self._changed = asyncio.Condition()

    @property
    def snapshot(self) -> DashboardSnapshot:
        return self._snapshot

    async def put(self, state: ModelState) -> None:
        """Take in what is known of a model now."""
        others = (other for other in self._snapshot.models if other.facts.id != state.facts.id)
        models = sorted((*others, state), key=lambda each: (each.facts.name, each.facts.digest))
        await self._replace(replace(self._snapshot, models=tuple(models), waiting_for=None))

    async def change(self, model_id: str, **fields: Any) -> None:
        """Replace fields of the state of a model that was put."""
        state = self._snapshot.model(model_id)
        assert state is not None
        await self.put(replace(state, **fields))

    async def wait_for(self, reason: str) -> None:
        """Say why there is no model to show."""
        await self._replace(replace(self._snapshot, waiting_for=reason))

    async def after(self, version: int) -> DashboardSnapshot:
        """The newest snapshot, as soon as it is another one than that of `version`."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._snapshot.version != version)
        return self._snapshot

    async def _replace(self, snapshot: DashboardSnapshot) -> None:
        async with self._changed:
            self._snapshot = replace(snapshot, version=self._snapshot.version + 1)
            self._changed.notify_all()
