"""GPUs by the word of the driver, without torch."""

from __future__ import annotations

import importlib.metadata
from typing import Any

import pytest
from blockswarm.peer.engine.driver import DriverGpus, check_device
from blockswarm.proto.errors import UsageError


class Driver:
    """A library of the driver that lists some GPUs."""

    def __init__(self, count: int, status: int = 0) -> None:
        self._count, self._status = count, status

    def cuInit(self, flags: int) -> int:  # the driver's own name
        return self._status

    def cuDeviceGetCount(self, number: Any) -> int:
        number._obj.value = self._count
        return 0


def missing(name: str) -> Any:
    raise OSError(f"{name}: cannot open shared object file")


def not_installed(name: str) -> str:
    raise importlib.metadata.PackageNotFoundError(name)


@pytest.mark.parametrize(
    ("asked", "driver", "version", "words"),
    [
        ("cuda", Driver(1), "2.9.0+cpu", "computes on the CPU only"),
        ("cuda", None, "2.9.0+cu128", "no GPU"),
        ("cuda", Driver(1, status=100), "2.9.0", "no GPU"),
        ("cuda:1", Driver(1), "2.9.0", "is 1 GPU here"),
        ("cuda:2", Driver(2), "2.9.0", "are 2 GPUs here"),
    ],
)
def test_a_gpu_that_cannot_be_used(asked: str, driver: Driver | None, version: str, words: str) -> None:
    gpus = DriverGpus(missing if driver is None else lambda name: driver, lambda name: version)
    with pytest.raises(UsageError, match=words) as refused:
        check_device(asked, gpus)
    assert asked in str(refused.value)


@pytest.mark.parametrize(
    ("asked", "driver", "version"),
    [
        ("cuda", Driver(1), "2.9.0+cu128"),
        ("cuda:1", Driver(2), "2.9.0"),
        ("cpu", None, "2.9.0+cpu"),
        ("auto", None, "2.9.0+cpu"),
        ("cuda", None, "2.9.0+rocm6.4"),
    ],
)
def test_a_gpu_that_may_be_there_is_left_to_torch(asked: str, driver: Driver | None, version: str) -> None:
    check_device(asked, DriverGpus(missing if driver is None else lambda name: driver, lambda name: version))


def test_without_torch_nothing_is_known() -> None:
    """Its absence is said by what needs it."""
    check_device("cuda", DriverGpus(missing, not_installed))
