"""A GPU that is not there: tensors that say they are on "cuda:0" and compute on the processor.

Between the two the rules of a real GPU hold.  A function of torch whose tensors are not all on the same side is an
error, apart from numbers (tensors without axes) of the processor; a tensor goes from one side to the other only by
being copied.  So code that makes a tensor on the processor where the GPU's was needed fails here as it would there, and
what does not fail gives the numbers that the processor gives.  Speed, memory, kernels and their rounding are not
pretended.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode

CPU, CUDA = torch.device("cpu"), torch.device("cuda:0")
_COPIES = {torch.Tensor.to, torch.Tensor.cpu, torch.Tensor.copy_}
_DEVICE_OF: Any = torch.Tensor.device


class MixedDevices(RuntimeError):
    """A function was given tensors of the processor and of the pretended GPU."""


class PretendedTensor(torch.Tensor):
    """A tensor of the pretended GPU; `held` has its values."""

    held: torch.Tensor

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> PretendedTensor:
        wrapper: PretendedTensor = torch.Tensor._make_wrapper_subclass(cls, held.shape, dtype=held.dtype, device=CUDA)
        wrapper.held = held
        return wrapper

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError(f"{function} was computed where it is not seen")

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(function, tuple(args), kwargs or {})


class _Watch(TorchFunctionMode):
    """Sees what makes a tensor from none, and what comes from the processor."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(function, tuple(args), kwargs or {})


@contextmanager
def pretended_gpu() -> Iterator[None]:
    """In this thread there is a GPU, "cuda:0"."""
    with _Watch(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "get_device_capability", lambda device=None: (8, 0))
        yield


def _run(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    given = [value for value in _leaves((args, kwargs)) if isinstance(value, torch.Tensor)]
    pretended = [tensor for tensor in given if isinstance(tensor, PretendedTensor)]
    if function == _DEVICE_OF.__get__:
        return CUDA if pretended else function(*args)
    if function is torch._C._nn._parse_to:  # reads the arguments of Module.to
        return function(*args, **kwargs)
    if function is torch._has_compatible_shallow_copy_type:  # Module.to: may a parameter stay and take other values?
        return not pretended
    wanted = [torch.device(value) for value in (*args, kwargs.get("device")) if isinstance(value, torch.device)]
    if not pretended and CUDA not in wanted:
        return function(*args, **kwargs)  # all of it is on the processor's side
    if pretended and function not in _COPIES:
        for tensor in given:
            if not isinstance(tensor, PretendedTensor) and tensor.dim():
                raise MixedDevices(f"{function} of tensors on both sides")
    held_args, held_kwargs = _mapped(_held, (args, kwargs))
    if function is torch.histc and pretended:  # the processor counts only floating numbers
        return PretendedTensor(function(held_args[0].float(), *held_args[1:], **held_kwargs).to(held_args[0].dtype))
    result = function(*held_args, **held_kwargs)
    if not any(isinstance(value, torch.Tensor) for value in _leaves(result)):
        return result
    stays = pretended and function is not torch.Tensor.cpu
    if function is torch.Tensor.copy_:
        stays = isinstance(args[0], PretendedTensor)
    if not (wanted[0] == CUDA if wanted else stays):
        return result
    same = {id(tensor.held): tensor for tensor in pretended}

    def pretend(value: Any) -> Any:
        """Keep the tensor that an operation in place returns."""
        if not isinstance(value, torch.Tensor):
            return value
        return same[id(value)] if id(value) in same else PretendedTensor(value)

    return _mapped(pretend, result)


def _leaves(value: Any) -> Iterator[Any]:
    """The values in tuples, lists and dictionaries, in order; torch's own trees take half of the time of a test."""
    if isinstance(value, tuple | list):
        for item in value:
            yield from _leaves(item)
    elif isinstance(value, dict):
        yield from _leaves(list(value.values()))
    else:
        yield value


def _mapped(change: Callable[[Any], Any], value: Any) -> Any:
    """The same tuples, lists and dictionaries with their leaves changed."""
    if isinstance(value, list):
        return [_mapped(change, item) for item in value]
    if isinstance(value, tuple):
        changed = [_mapped(change, item) for item in value]
        return type(value)(*changed) if hasattr(value, "_fields") else type(value)(changed)  # torch.return_types
    if isinstance(value, dict):
        return {key: _mapped(change, item) for key, item in value.items()}
    return change(value)


def _held(value: Any) -> Any:
    """The tensor on the processor that stands for an argument."""
    if isinstance(value, PretendedTensor):
        return value.held
    return CPU if isinstance(value, torch.device) and value == CUDA else value
