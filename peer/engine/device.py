"""The device on which a peer computes: the processor or an NVIDIA GPU, and what torch knows of it.

Devices are named as torch names them, "cpu" and "cuda:0"; only this package turns a name into a device.
"""

from __future__ import annotations

import gc
from collections.abc import Mapping

import torch

from ...proto.errors import UsageError
from .driver import chosen_gpu
from .machine.pages import return_freed_memory

CPU = torch.device("cpu")

_STORED_DTYPES: Mapping[str, str] = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}


class Gpus:
    """The GPUs that torch sees."""

    def count(self) -> int:
        return torch.cuda.device_count() if torch.cuda.is_available() else 0

    def are_supported(self) -> bool:
        """Whether the installed torch could compute on a GPU if there were one."""
        return torch.version.cuda is not None or torch.version.hip is not None

    def torch_version(self) -> str:
        return torch.__version__

    def have_bfloat16(self) -> bool:
        # Emulation converts to float32 and back for every operation: it works, but at a fraction of the speed.
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))

    def name(self, device: torch.device) -> str:
        return torch.cuda.get_device_name(device)

    def free_bytes(self, device: torch.device) -> int:
        free, _total = torch.cuda.mem_get_info(device)
        return int(free)

    def total_bytes(self, device: torch.device) -> int:
        return int(torch.cuda.get_device_properties(device).total_memory)


GPUS = Gpus()


def find_device(asked: str, gpus: Gpus = GPUS) -> torch.device:
    """Return the device for "auto" (a GPU if torch sees one), "cpu", "cuda" or "cuda:1"; a GPU always has its number.

    Raises UsageError if torch does not see the requested GPU.
    """
    if asked == "cpu" or (asked == "auto" and not gpus.count()):
        return CPU
    return torch.device("cuda", chosen_gpu(asked, gpus))


def describe_device(device: torch.device, gpus: Gpus = GPUS) -> str:
    """For people, and for telling two machines apart: "cpu", or "cuda:0 NVIDIA GeForce RTX 3060"."""
    return str(device) if device.type == "cpu" else f"{device} {gpus.name(device)}"


def gpu_of(device: torch.device, gpus: Gpus = GPUS) -> tuple[str, int] | None:
    """Return the name of the GPU, and its memory in bytes; None for a processor."""
    return None if device.type == "cpu" else (gpus.name(device), gpus.total_bytes(device))


def free_device_bytes(device: torch.device, gpus: Gpus = GPUS) -> int | None:
    """Return the free bytes of the device's own memory; None if it uses the machine's."""
    return None if device.type == "cpu" else gpus.free_bytes(device)


def device_free_bytes(device: str) -> int | None:
    """Return `free_device_bytes` of a device by its name, after returning all memory that is no longer used."""
    place = torch.device(device)
    gc.collect()
    return_freed_memory()
    if place.type == "cuda":
        torch.cuda.empty_cache()  # memory that torch caches counts as used
    return free_device_bytes(place)


def find_dtype(asked: str, stored: str, device: torch.device, gpus: Gpus = GPUS) -> str:
    """Choose the dtype of activations and of weights that are not quantised, for `--dtype` "auto" or a name.

    `stored`: the dtype of the checkpoint's weights, as safetensors names it ("BF16"). Raises UsageError for one that
    the device cannot compute in.
    """
    if device.type == "cpu":
        return "float32" if asked == "auto" else asked
    return choose_gpu_dtype(asked, stored, gpus.have_bfloat16())


def choose_gpu_dtype(asked: str, stored: str, has_bfloat16: bool) -> str:
    """As `find_dtype`, on a GPU that computes in float32, float16 and perhaps bfloat16. Pure.

    "auto" keeps the numbers that the model was published with; bfloat16 on a GPU that does not compute in it becomes
    float16, which has more digits but ends at 65504.
    """
    if asked == "bfloat16" and not has_bfloat16:
        raise UsageError("this GPU does not compute in bfloat16", hint="Use --dtype float16, or float32.")
    if asked != "auto":
        return asked
    published = _STORED_DTYPES.get(stored, "bfloat16")
    return "float16" if published == "bfloat16" and not has_bfloat16 else published
