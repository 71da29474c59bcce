"""Replaces a block's linear modules by packed matrices; everything else in the block stays the family's own code.

Linears that are given the same input one after the other (queries, keys and values; gate and up) become one matrix: the
input is prepared once, and one product is computed instead of two or three.  They are found by watching a tiny model of
the same kind (`shared_inputs`).

Not packed are modules that only look like a linear (routers of experts), and linears with so few outputs that they are
gates rather than matrices: they save no memory, and their precision decides which expert computes.
Experts are one parameter with three axes, not linears: each expert is packed by itself if the family computes them by
transformers' common scheme and the form saves memory; otherwise they stay as they are.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig
from transformers.pytorch_utils import Conv1D

from ....proto.model.family import find_blocks
from ....proto.model.tiny import random_model, tiny_config
from ....proto.weights.forms import FEWEST_COLUMNS, FEWEST_OUTPUTS, Forms, Packing
from ....proto.weights.packed import PackedMatrix
from ..device import CPU

FormChoice = Packing | Forms
"""One form for every matrix, or a form by shape."""
InputGroups = frozenset[tuple[str, ...]]
"""Names of linears within a block that are given the same input, in the order of their calls."""


class SharedProduct:
    """The product with one packed matrix, of which each of several linears takes its own columns.

    The first linear, in the order of the family's calls, computes; the others take their parts if they are given the
    same tensor object, and compute anew otherwise.  A product is kept until the last linear has taken its part; the
    first one never uses an old product.  `shared_inputs` has checked that nothing writes to the input between calls.
    """

    def __init__(self, matrix: PackedMatrix, widths: Sequence[int]) -> None:
        self.matrix = matrix
        self._widths = list(widths)
        self._input: torch.Tensor | None = None
        self._parts: list[torch.Tensor | None] = []

    def take(self, rows: torch.Tensor, index: int) -> torch.Tensor:
        """(..., K) -> (..., N_index), a view unless there is only one linear; each part is taken once."""
        if len(self._widths) == 1:
            return self._multiply(rows)
        part = self._parts[index] if index > 0 and self._input is rows else None
        if part is None:
            self._input = rows
            self._parts = list(self._multiply(rows).split(self._widths, dim=-1))
            part = self._parts[index]
        self._parts[index] = None
        if all(other is None for other in self._parts):
            self._input, self._parts = None, []
        assert part is not None
        return part

    def _multiply(self, rows: torch.Tensor) -> torch.Tensor:
        shape = rows.shape
        return self.matrix.multiply(rows.reshape(-1, shape[-1])).view(*shape[:-1], -1)


class PackedLinear(nn.Module):
    """Takes the place of a linear in a block."""

    def __init__(self, product: SharedProduct, index: int, weight: torch.Tensor, bias: nn.Parameter | None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.bias = bias
        # Families, and the stage, read the dtype of activations from the weights.
        self.weight = nn.Parameter(weight.new_empty(0), requires_grad=False)
        self.packed_bytes = product.matrix.nbytes if index == 0 else 0
        """Bytes held besides parameters and buffers; those of a shared matrix are counted once."""
        self._product = product
        self._index = index

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        output = self._product.take(hidden_states, self._index)
        return output if self.bias is None else output + self.bias


class PackedExperts(nn.Module):
    """Takes the place of experts that transformers computes by its common scheme, see `ExpertsInterface`."""

    def __init__(self, experts: Any, forms: FormChoice, device: torch.device) -> None:
        """The weights are taken out of `experts`, which keeps its biases and its activation."""
        super().__init__()
        self._family = experts
        up_name = _up_name(experts)
        self._up = _pack_experts(experts, up_name, forms, device)
        self._down = _pack_experts(experts, "down_proj", forms, device)
        self._up_bias = getattr(experts, f"{up_name}_bias", None) if experts.has_bias else None
        self._down_bias = experts.down_proj_bias if experts.has_bias else None
        self.packed_bytes = sum(matrix.nbytes for matrix in (*self._up, *self._down))

    def forward(
        self, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
    ) -> torch.Tensor:
        """(T, H), experts (T, k) and their weights (T, k) -> (T, H).

        A token's result is summed in the order of its experts' numbers, so it does not depend on the other tokens.
        """
        output = torch.zeros_like(hidden_states)
        for expert in sorted(set(top_k_index.flatten().tolist())):
            tokens, places = torch.where(top_k_index == expert)
            inner = _add(self._up[expert].multiply(hidden_states[tokens]), self._up_bias, expert)
            inner = self._family._apply_gate(inner) if self._family.has_gate else self._family.act_fn(inner)
            outer = _add(self._down[expert].multiply(inner), self._down_bias, expert)
            output.index_add_(0, tokens, (outer * top_k_weights[tokens, places, None]).to(output.dtype))
        return output


@torch.inference_mode()
def pack_block(block: nn.Module, forms: FormChoice, groups: InputGroups, device: torch.device = CPU) -> None:
    """Pack, in place, all linears and experts that fit their form; `groups` are the result of `shared_inputs`.

    Each weight is freed as soon as it is packed, see `Packing.pack`; the others stay where they are. Raises
    RuntimeError if this torch or processor cannot compute a form.
    """
    for names, form in _assigned(block, forms, groups):
        modules: list[Any] = [block.get_submodule(name) for name in names]
        weights = [_weight(module) for module in modules]
        product = SharedProduct(form.pack(weights, device), [weight.shape[0] for weight in weights])
        for index, (name, module) in enumerate(zip(names, modules, strict=True)):
            _replace(block, name, PackedLinear(product, index, weights[index], module.bias))
        del modules, module, weights
    for name, experts in list(_packable_experts(block, forms)):
        _replace(block, name, PackedExperts(experts, forms, device))


@torch.inference_mode()
def packed_block_bytes(block: nn.Module, forms: FormChoice, groups: InputGroups) -> int:
    """Return the bytes that `block`, which may be on the meta device, will hold after `pack_block`."""
    nbytes = sum(tensor.nbytes for tensor in (*block.parameters(), *block.buffers()))
    for names, form in _assigned(block, forms, groups):
        weights = [_weight(block.get_submodule(name)) for name in names]
        outputs, columns = sum(weight.shape[0] for weight in weights), weights[0].shape[1]
        nbytes += form.nbytes(outputs, columns, weights[0].dtype) - sum(weight.nbytes for weight in weights)
    for _, experts in _packable_experts(block, forms):
        for parameter in _expert_parameters(experts):
            outputs, columns = _expert_shape(experts, parameter)
            form = forms.at(outputs, columns)
            nbytes += parameter.shape[0] * form.nbytes(outputs, columns, parameter.dtype) - parameter.nbytes
    return nbytes


@torch.inference_mode()
def matrix_shapes(block: nn.Module, groups: InputGroups) -> dict[tuple[int, int], int]:
    """Return the shapes (N, K) of a block's matrices -> their number; linears with the same input are one matrix."""
    shapes: dict[tuple[int, int], int] = {}
    linears = _linears(block)
    for names in _grouped(linears, groups):
        weights = [_weight(linears[name]) for name in names]
        shape = sum(weight.shape[0] for weight in weights), weights[0].shape[1]
        shapes[shape] = shapes.get(shape, 0) + 1
    for _, experts in _experts(block):
        for parameter in _expert_parameters(experts):
            shape = _expert_shape(experts, parameter)
            shapes[shape] = shapes.get(shape, 0) + parameter.shape[0]
    return shapes


def held_bytes(block: nn.Module) -> int:
    """Return the bytes of a block's weights as they are held now, packed or not."""
    packed: int = sum(getattr(module, "packed_bytes", 0) for module in block.modules())
    return packed + sum(tensor.nbytes for tensor in (*block.parameters(), *block.buffers()))


def shared_inputs(config: PreTrainedConfig) -> InputGroups:
    """Find the linears of a block that are given the same input, by watching a tiny model of the same kind.

    Takes about 0.1 s the first time, nothing after that. Raises UnsupportedModel if there is no tiny model.
    """
    tiny = tiny_config(config)
    key = f"{type(tiny).__name__} {tiny.to_json_string()}"
    if key not in _shared_inputs:
        _shared_inputs[key] = _observe_inputs(tiny)
    return _shared_inputs[key]


_shared_inputs: dict[str, InputGroups] = {}


@torch.inference_mode()
def _observe_inputs(config: PreTrainedConfig) -> InputGroups:
    """Run a tiny model and group its linears. All inputs are kept to the end, so that no two have the same `id`."""
    model = random_model(config)
    groups: set[tuple[str, ...]] = set()
    for block in find_blocks(model, config.num_hidden_layers).blocks:
        seen: list[tuple[str, torch.Tensor, torch.Tensor]] = []
        hooks = [
            module.register_forward_pre_hook(functools.partial(_note, seen, name))
            for name, module in _linears(block).items()
        ]
        model(input_ids=torch.arange(3, 6)[None], use_cache=False)
        for hook in hooks:
            hook.remove()
        groups |= _group(seen)
    return frozenset(groups)


def _note(seen: list[tuple[str, torch.Tensor, torch.Tensor]], name: str, _: nn.Module, inputs: Sequence[Any]) -> None:
    seen.append((name, inputs[0], inputs[0].clone()))


def _group(seen: Sequence[tuple[str, torch.Tensor, torch.Tensor]]) -> set[tuple[str, ...]]:
    """Group the calls of a forward, (name, input, a copy of the input), that share an unchanged input."""
    calls: dict[str, int] = {}
    by_input: dict[int, list[tuple[str, torch.Tensor]]] = {}
    for name, rows, value in seen:
        calls[name] = calls.get(name, 0) + 1
        by_input.setdefault(id(rows), []).append((name, value))
    groups = set()
    for members in by_input.values():
        unchanged = all(torch.equal(value, members[0][1]) for _, value in members)
        names = tuple(name for name, _ in members)
        if len(names) > 1 and unchanged and all(calls[name] == 1 for name in names):
            groups.add(names)
    return groups


def _assigned(block: nn.Module, forms: FormChoice, groups: InputGroups) -> list[tuple[tuple[str, ...], Packing]]:
    """The linears to pack, by name, and their form: a group together if all fit the group's form, otherwise alone."""
    linears = _linears(block)
    assigned: list[tuple[tuple[str, ...], Packing]] = []
    for names in _grouped(linears, groups):
        shapes = [tuple(_weight(linears[name]).shape) for name in names]
        form = forms.at(sum(outputs for outputs, _ in shapes), shapes[0][1])
        if all(form.fits(*shape) for shape in shapes):
            assigned.append((names, form))
        elif form is not Packing.PLAIN:
            alone = [(name, forms.at(*shape), shape) for name, shape in zip(names, shapes, strict=True)]
            assigned += [((name,), form) for name, form, shape in alone if form.fits(*shape)]
    return assigned


def _grouped(linears: Mapping[str, Any], groups: InputGroups) -> list[tuple[str, ...]]:
    """Partition the block's linears: into those of `groups` that are complete, large ones first; the others alone."""
    chosen: list[tuple[str, ...]] = []
    left = dict.fromkeys(linears)
    for names in sorted(groups, key=lambda names: (-len(names), names)):
        if all(name in left for name in names) and len({_weight(linears[name]).shape[1] for name in names}) == 1:
            chosen.append(names)
            for name in names:
                del left[name]
    return [*chosen, *((name,) for name in left)]


def _linears(block: nn.Module) -> dict[str, Any]:
    """The linears that are large enough to be packed, by name."""
    found = {}
    for name, module in block.named_modules():
        if _is_linear(module):
            outputs, columns = _weight(module).shape
            if outputs >= FEWEST_OUTPUTS and columns >= FEWEST_COLUMNS:
                found[name] = module
    return found


def _is_linear(module: nn.Module) -> bool:
    """Whether a module computes the product with its weight plus its bias, even if it is a family's own class.

    Such classes are tried: routers of experts are subclasses of linears, too, but return more than a product.
    """
    if type(module) in (nn.Linear, Conv1D):
        return True
    if not isinstance(module, nn.Linear):
        return False
    rows = torch.ones(1, module.in_features, dtype=module.weight.dtype, device=module.weight.device)
    product = nn.functional.linear(rows, module.weight, module.bias)
    output = module(rows)
    if not isinstance(output, torch.Tensor) or output.shape != product.shape:
        return False
    return output.is_meta or torch.allclose(output, product, rtol=1e-2, atol=1e-5)


def _packable_experts(block: nn.Module, forms: FormChoice) -> Iterable[tuple[str, Any]]:
    for name, experts in _experts(block):
        shapes = [_expert_shape(experts, parameter) for parameter in _expert_parameters(experts)]
        chosen = [forms.at(*shape) for shape in shapes]
        if all(form.saves_memory and form.fits(*shape) for form, shape in zip(chosen, shapes, strict=True)):
            yield name, experts


def _experts(block: nn.Module) -> Iterable[tuple[str, Any]]:
    """Experts that are computed by transformers' common scheme."""
    for name, module in block.named_modules():
        if not hasattr(module, "is_transposed") or getattr(module, "has_post_expert_norm", False):
            continue
        parameters = [getattr(module, _up_name(module), None), getattr(module, "down_proj", None)]
        if all(isinstance(parameter, nn.Parameter) and parameter.dim() == 3 for parameter in parameters):
            yield name, module


def _weight(module: Any) -> torch.Tensor:
    """The weight of a linear, (N, K), a view."""
    weight: torch.Tensor = module.weight.data
    return weight.T if isinstance(module, Conv1D) else weight


def _up_name(experts: Any) -> str:
    return "gate_up_proj" if experts.has_gate else "up_proj"


def _expert_parameters(experts: Any) -> tuple[Any, Any]:
    return getattr(experts, _up_name(experts)), experts.down_proj


def _expert_shape(experts: Any, parameter: torch.Tensor) -> tuple[int, int]:
    """(N, K) of one expert."""
    first, second = parameter.shape[1:]
    return (second, first) if experts.is_transposed else (first, second)


def _pack_experts(experts: Any, name: str, forms: FormChoice, device: torch.device) -> list[PackedMatrix]:
    """Pack every expert's matrix of the parameter `name`, and remove the parameter from the module."""
    weights = getattr(experts, name).data
    form = forms.at(*_expert_shape(experts, weights))
    delattr(experts, name)
    return [form.pack([weight.T if experts.is_transposed else weight], device) for weight in weights]


def _add(output: torch.Tensor, bias: torch.Tensor | None, expert: int) -> torch.Tensor:
    return output if bias is None else output + bias[expert]


def _replace(block: nn.Module, name: str, module: nn.Module) -> None:
    path, _, attribute = name.rpartition(".")
    setattr(block.get_submodule(path), attribute, module)
