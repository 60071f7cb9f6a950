"""Attention over answers at work: each has a slot in memory of a fixed shape for its keys and values.

Registered with transformers as `slots`; models hand the `slots` keyword through to it. A result depends on its own
slot alone, to the last bit: the kernels used here give the same bytes whatever else is in the batch (tested).
"""

from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface

from stages.model.attention import Blocks, packed_attention

NAME = "slots"

WIDTH_STEP = 32
"""Attention looks at so many positions, or a multiple."""

IGNORED = {"position_ids", "output_attentions", "use_cache", "is_causal", "cache_position", "position_embeddings"}
"""Keywords of models that mean nothing here."""


class UnsupportedModelError(Exception):
    """A model has attention of another kind; the text says which."""


class Slots:
    """Keys and values of `count` answers of up to `length` tokens each, in every layer.

    Attributes:
        used: int64 (count,): tokens in each slot, those about to be written not counted.
        layers: how many have attended since the last plan.
    """

    def __init__(self, count: int, length: int, device: torch.device) -> None:
        self.count = count
        self.length = -(-length // WIDTH_STEP) * WIDTH_STEP
        self.used = torch.zeros(count, dtype=torch.int64)
        self.layers = 0
        self._device = device
        self._keys: dict[int, torch.Tensor] = {}
        self._values: dict[int, torch.Tensor] = {}

    def plan_prompts(self, blocks: Blocks, slots: torch.Tensor, positions: torch.Tensor) -> None:
        """The next pass reads prompts in one row: int64 (time,), the slot (-1: padding) and the place of each token."""
        self.layers = 0
        kept = torch.nonzero(slots >= 0).flatten()
        self._blocks: Blocks | None = blocks
        self._tokens, self._into, self._at = kept, slots[kept].to(self._device), positions[kept].to(self._device)

    def plan_step(self, start: int, active: int) -> None:
        """The next pass takes one token into each of the `active` slots from `start`; rows beyond them are padding."""
        self.layers = 0
        self._blocks = None
        self._start, self._active = start, active
        used = self.used[start : start + active].to(self._device)
        self._rows, self._at = torch.arange(start, start + active, device=self._device), used
        self._width = min(self.length, int(used.max() + WIDTH_STEP) // WIDTH_STEP * WIDTH_STEP)
        self._seen = (torch.arange(self._width, device=self._device) <= used[:, None])[:, None, None]

    def move(self, source: int, target: int) -> None:
        """Copy a slot onto another."""
        used = int(self.used[source])
        for tensors in (self._keys, self._values):
            for tensor in tensors.values():
                tensor[target, :, :used] = tensor[source, :, :used]
        self.used[target] = used

    def attend(
        self, module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float | None
    ) -> torch.Tensor:
        """(batch, heads, time, size) to (batch, time, heads, size), as planned; keys and values are kept."""
        layer = module.layer_idx
        self.layers += 1
        if self._blocks is not None:
            keys, values = self._layer(layer, key, value)
            keys[self._into, :, self._at] = key[0].transpose(0, 1)[self._tokens]
            values[self._into, :, self._at] = value[0].transpose(0, 1)[self._tokens]
            return packed_attention(module, query, key, value, None, 0.0, scaling, self._blocks)[0]
        keys, values = self._keys[layer], self._values[layer]
        keys[self._rows, :, self._at] = key[: self._active, :, 0]
        values[self._rows, :, self._at] = value[: self._active, :, 0]
        near, far = self._start, self._start + self._active
        keys, values = keys[near:far, :, : self._width], values[near:far, :, : self._width]
        shared = query[: self._active].unflatten(1, (keys.shape[1], -1)).squeeze(3)  # heads that share keys are rows
        found = scaled_dot_product_attention(shared, keys, values, attn_mask=self._seen, scale=scaling)
        result = query.new_empty(query.shape[0], 1, query.shape[1], query.shape[3])
        result[: self._active, 0] = found.flatten(1, 2)
        return result

    def _layer(self, layer: int, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The memory of a layer, made where it is first used; zeros, since a masked NaN would still be one."""
        for tensors, like in ((self._keys, key), (self._values, value)):
            if layer not in tensors:
                tensors[layer] = like.new_zeros(self.count, like.shape[1], self.length, like.shape[3])
        return self._keys[layer], self._values[layer]


def bytes_per_token(config: Any, dtype: torch.dtype) -> int:
    """Memory of one token in a slot, all layers."""
    text = config.get_text_config()
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return int(2 * text.num_hidden_layers * heads * size * dtype.itemsize)


def check_usual(length: int, *, sliding_window: int | None = None, **kwargs: Any) -> None:
    """Refuse what a model asks of its attention, over up to `length` tokens, beside the usual.

    Raises:
        UnsupportedModelError: there is something.
    """
    if sliding_window is not None and sliding_window < length:
        raise UnsupportedModelError(f"its attention has a window of {sliding_window} tokens")
    for name, given in kwargs.items():
        if given is not None and name not in IGNORED:
            raise UnsupportedModelError(f"its attention takes {name}")


def _attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    slots: Slots | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    if slots is None:
        raise UnsupportedModelError("it does not hand keywords to its attention")
    check_usual(slots.length, **kwargs)
    return slots.attend(module, query, key, value, scaling), None


AttentionInterface.register(NAME, _attention)
AttentionMaskInterface.register(NAME, lambda *args, **kwargs: None)
