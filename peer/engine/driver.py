"""Finds the GPUs through the driver and torch's build, without loading torch: a second instead of many."""

from __future__ import annotations

import ctypes
import importlib.metadata
import sys
from collections.abc import Callable
from typing import Any, Protocol

from ...proto.errors import UsageError


class GpuCount(Protocol):
    """The facts that decide whether a GPU can be requested."""

    def count(self) -> int:
        """Return the number of GPUs."""

    def are_supported(self) -> bool:
        """Whether the installed torch could compute on a GPU if there were one."""

    def torch_version(self) -> str:
        """Return the version of the installed torch."""


def chosen_gpu(asked: str, gpus: GpuCount) -> int:
    """Return the index of the GPU that "cuda" or "cuda:1" asks for. Raises UsageError if there is no such GPU."""
    index, count = int(asked.partition(":")[2] or 0), gpus.count()
    if not gpus.are_supported():
        raise UsageError(
            f"--device {asked}: the installed torch {gpus.torch_version()} computes on the CPU only",
            hint="Install a build of torch with CUDA (pytorch.org/get-started/locally), or use --device cpu.",
        )
    if not count:
        raise UsageError(
            f"--device {asked}: there is no GPU that torch could use",
            hint="See whether nvidia-smi lists one and its driver is new enough, or use --device cpu.",
        )
    if index >= count:
        raise UsageError(
            f"--device {asked}: there {'is 1 GPU' if count == 1 else f'are {count} GPUs'} here, counted from cuda:0",
            hint=f"Choose one of {', '.join(f'cuda:{number}' for number in range(count))}.",
        )
    return index


class DriverGpus:
    """The GPUs that the NVIDIA driver lists; they are known only for torch's CUDA and CPU builds."""

    def __init__(
        self,
        load: Callable[[str], Any] = ctypes.CDLL,
        version_of: Callable[[str], str] = importlib.metadata.version,
    ) -> None:
        self._load = load
        self._version_of = version_of

    def are_known(self) -> bool:
        """Whether the driver decides: it does not for AMD's build of torch, nor if torch is not installed."""
        build = self.torch_version().partition("+")[2]
        return bool(self.torch_version()) and (not build or build.startswith(("cu", "cpu")))

    def are_supported(self) -> bool:
        return not self.torch_version().endswith("+cpu")

    def torch_version(self) -> str:
        try:
            return self._version_of("torch")
        except importlib.metadata.PackageNotFoundError:
            return ""

    def count(self) -> int:
        try:
            driver = self._load("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
        except OSError:
            return 0
        number = ctypes.c_int()
        if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(number)) != 0:
            return 0
        return number.value


def check_device(asked: str, gpus: DriverGpus | None = None) -> None:
    """Raise UsageError if the requested GPU is missing, as far as that is known without torch."""
    gpus = gpus or DriverGpus()
    if asked.startswith("cuda") and gpus.are_known():
        chosen_gpu(asked, gpus)
