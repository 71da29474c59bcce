"""Keeps the newest snapshot, and wakes tasks that wait for the next one."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

from .sighting import DashboardSnapshot, ModelState


class SnapshotKeeper:
    """Holds the newest snapshot, which is replaced as a whole: a thread sees a consistent one. Used on one loop."""

    def __init__(self) -> None:
        self._snapshot = DashboardSnapshot()
        self._changed = asyncio.Condition()

    @property
    def snapshot(self) -> DashboardSnapshot:
        return self._snapshot

    async def put(self, state: ModelState) -> None:
        """Add or replace the state of a model."""
        others = (other for other in self._snapshot.models if other.facts.id != state.facts.id)
        models = sorted((*others, state), key=lambda each: (each.facts.name, each.facts.digest))
        await self._replace(replace(self._snapshot, models=tuple(models), waiting_for=None))

    async def change(self, model_id: str, **fields: Any) -> None:
        """Replace fields of the state of a known model."""
        state = self._snapshot.model(model_id)
        assert state is not None
        await self.put(replace(state, **fields))

    async def wait_for(self, reason: str) -> None:
        """Record why there is no model to show yet."""
        await self._replace(replace(self._snapshot, waiting_for=reason))

    async def after(self, version: int) -> DashboardSnapshot:
        """Wait for a snapshot with a version other than `version`, and return it."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._snapshot.version != version)
        return self._snapshot

    async def _replace(self, snapshot: DashboardSnapshot) -> None:
        async with self._changed:
            self._snapshot = replace(snapshot, version=self._snapshot.version + 1)
            self._changed.notify_all()
