"""Linear layers for a few rows on a CPU: weights laid out once for oneDNN, layers of one input as one product.

A step of decoding waits for weights to come from memory; oneDNN would lay them out anew at every call. The operators
are those that torch.compile puts in for frozen weights (torch/_inductor/fx_passes/mkldnn_fusion.py).
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

GROUPS = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
"""Layers of transformers' models that are called with one and the same input."""


class _Product:
    """An input times the weights of several layers; the last product is kept until all have had their part."""

    def __init__(self, layers: Sequence[nn.Linear], rows: int) -> None:
        self._sizes = [layer.out_features for layer in layers]
        weight = torch.cat([layer.weight.detach() for layer in layers])
        biases = [layer.bias for layer in layers]
        self._bias = None if biases[0] is None else torch.cat([bias.detach() for bias in biases])
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight, rows)
        self._input: torch.Tensor | None = None
        self._parts: tuple[torch.Tensor, ...] = ()

    def part(self, number: int, given: torch.Tensor) -> torch.Tensor:
        if given is not self._input:
            whole = torch.ops.mkldnn._linear_pointwise(given, self._weight, self._bias, "none", [], "")
            self._input, self._parts = given, whole.split(self._sizes, dim=-1)
        part = self._parts[number]
        if number == len(self._sizes) - 1:
            self._input, self._parts = None, ()
        return part


class _Part(nn.Module):
    """Stands where a linear layer stood."""

    def __init__(self, product: _Product, number: int) -> None:
        super().__init__()
        self._product, self._number = product, number

    def forward(self, given: torch.Tensor) -> torch.Tensor:
        return self._product.part(self._number, given)


def can_prepack(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether this torch and this machine have it; in float32 there is little to gain."""
    return (
        device.type == "cpu"
        and dtype == torch.bfloat16
        and torch.backends.mkldnn.is_available()
        and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    )


@torch.no_grad()
def prepack(model: nn.Module, rows: int) -> None:
    """Replace all linear layers of a model, for inputs of about so many rows; it can then only be read forwards."""
    for module in list(model.modules()):
        children: dict[str, Any] = {name: child for name, child in module.named_children() if type(child) is nn.Linear}
        for names in _grouped(children):
            product = _Product([children[name] for name in names], rows)
            for number, name in enumerate(names):
                setattr(module, name, _Part(product, number))


def _grouped(layers: dict[str, nn.Linear]) -> list[tuple[str, ...]]:
    """Names of layers that make one product: the known groups that are there as a whole, and each other by itself."""
    found = []
    for group in GROUPS:
        if layers.keys() >= set(group) and len({layers[name].bias is None for name in group}) == 1:
            found.append(group)
    taken = {name for group in found for name in group}
    return found + [(name,) for name in layers if name not in taken]
