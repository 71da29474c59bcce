"""The records that a node of the DHT keeps for others: bounded, and safe from what is sent later."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ...wire.messages.limits import MAX_RECORDS_PER_KEY
from .shim import DHTLocalStorage


@dataclass(frozen=True, slots=True)
class StorageLimits:
    """The most that a node keeps for others."""

    keys: int = 64
    records_per_key: int = MAX_RECORDS_PER_KEY
    records: int = 8192
    """Records under all keys together: at most 33 MB."""


class BoundedStorage(DHTLocalStorage):
    """hivemind's storage for dictionaries only, bounded in keys, records per key and records in all.

    In hivemind's own, an older record that is sent again is not stored, but still makes the newer one expire
    at the older one's time; here it changes nothing.
    """

    def __init__(self, limits: StorageLimits | None = None) -> None:
        super().__init__()
        self._limits = limits or StorageLimits()

    @classmethod
    def holding(cls, other: DHTLocalStorage, limits: StorageLimits | None = None) -> BoundedStorage:
        """A storage with everything that `other` has received by now, within the limits."""
        self = cls(limits)
        for key, (records, _) in list(other.items()):
            if not isinstance(records, bytes):
                for subkey, (value, expiration_time) in list(records.items()):
                    self.store_subkey(key, subkey, value, expiration_time)
        return self

    def store(self, key: Any, value: Any, expiration_time: float, subkey: Any = None) -> bool:
        return subkey is not None and self.store_subkey(key, subkey, value, expiration_time)

    def store_subkey(self, key: Any, subkey: Any, value: bytes, expiration_time: float) -> bool:
        entry = self.get(key)
        if entry is None and len(self) >= self._limits.keys:
            return False
        known = entry.value.get(subkey) if entry is not None else None
        if known is not None and known.expiration_time >= expiration_time:
            return False
        if known is None and not self._has_room(entry):
            return False
        return bool(super().store_subkey(key, subkey, value, expiration_time))

    def _has_room(self, entry: Any) -> bool:
        records_here = len(entry.value) if entry is not None else 0
        records = sum(len(value) for _, (value, _) in self.items())
        return records_here < self._limits.records_per_key and records < self._limits.records


class NoCache(DHTLocalStorage):
    """No cache: any node may write to it, and its entries would hide those of the storage."""

    def store(self, key: Any, value: Any, expiration_time: float, subkey: Any = None) -> bool:
        return False

    def store_subkey(self, key: Any, subkey: Any, value: bytes, expiration_time: float) -> bool:
        return False
