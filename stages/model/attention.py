"""Attention inside each example of a packed row, at the cost of the examples' lengths and not of the row's.

Tokens are gathered into blocks of examples of like length, attention runs block by block, and the results go back.
Registered with transformers as `packed`; models hand the `blocks` keyword through to it.
"""

from typing import Any, NamedTuple

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "packed"

LENGTH_STEP = 32
"""Examples share a block when their lengths, rounded up to this, are equal: few kernel calls, little padding."""


class Blocks(NamedTuple):
    """Where each token of a batch, flattened to (batch * time,), goes and comes back from."""

    there: torch.Tensor
    """int64 (slots,): the token in each slot; a slot beyond an example's end repeats its last token."""
    back: torch.Tensor
    """int64 (batch * time,): the slot of each token."""
    repeats: torch.Tensor
    """bool (slots,): slots beyond the end of an example."""
    shapes: list[tuple[int, int]]
    """(examples, length) of each block; its slots follow those of the block before."""


def make_blocks(position_ids: torch.Tensor) -> Blocks:
    """Blocks of the examples of a batch, from positions int64 (batch, time) that start at 0 with each example.

    Padding at the end of a row counts as an example of its own, so that every token is in exactly one.
    """
    starts = torch.nonzero(position_ids.flatten() == 0).flatten()
    lengths = torch.diff(starts, append=starts.new_tensor([position_ids.numel()]))
    rounded = (lengths + LENGTH_STEP - 1) // LENGTH_STEP * LENGTH_STEP
    there, repeats, shapes = [], [], []
    back = torch.empty(position_ids.numel(), dtype=torch.int64, device=position_ids.device)
    slots = 0
    for width in torch.unique(rounded).tolist():
        chosen = torch.nonzero(rounded == width).flatten()
        offsets = torch.arange(width, device=position_ids.device)
        within = torch.minimum(offsets[None, :], lengths[chosen, None] - 1)
        tokens = starts[chosen, None] + within
        real = offsets[None, :] < lengths[chosen, None]
        back[tokens[real]] = slots + torch.nonzero(real.flatten()).flatten()
        there.append(tokens.flatten())
        repeats.append(~real.flatten())
        shapes.append((len(chosen), width))
        slots += tokens.numel()
    return Blocks(torch.cat(there), back, torch.cat(repeats), shapes)


class _IntoSlots(torch.autograd.Function):
    """Tokens into slots. Each token has one slot; the slots that repeat it feed nothing and pass no gradient back."""

    @staticmethod
    def forward(ctx: Any, tokens: torch.Tensor, blocks: Blocks) -> torch.Tensor:
        ctx.blocks = blocks
        return tokens.index_select(0, blocks.there)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradients[0].index_select(0, ctx.blocks.back), None


class _OutOfSlots(torch.autograd.Function):
    """Slots back into tokens; slots that repeat a token get no gradient."""

    @staticmethod
    def forward(ctx: Any, slots: torch.Tensor, blocks: Blocks) -> torch.Tensor:
        ctx.blocks = blocks
        return slots.index_select(0, blocks.back)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        gradient = gradients[0].index_select(0, ctx.blocks.there)
        return gradient.masked_fill_(ctx.blocks.repeats[:, None, None], 0.0), None


def _packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    blocks: Blocks | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention, (batch, heads, time, size) to (batch, time, heads, size); the mask counts without `blocks`."""
    if blocks is None:
        out: tuple[torch.Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
        return out
    batch, _, time, _ = query.shape
    moved = [_IntoSlots.apply(x.transpose(1, 2).flatten(0, 1), blocks) for x in (query, key, value)]
    if query.device.type == "cpu":  # its bfloat16 kernel has a backward four times as slow as float32's
        moved = [x.float() for x in moved]
    parts, start = [], 0
    for examples, length in blocks.shapes:
        stop = start + examples * length
        q, k, v = (x[start:stop].unflatten(0, (examples, length)).transpose(1, 2) for x in moved)
        part = scaled_dot_product_attention(
            q, k, v, dropout_p=dropout, is_causal=True, scale=scaling, enable_gqa=q.shape[1] != k.shape[1]
        )
        parts.append(part.transpose(1, 2).flatten(0, 1))
        start = stop
    result = _OutOfSlots.apply(torch.cat(parts).to(query.dtype), blocks)
    return result.unflatten(0, (batch, time)), None


AttentionInterface.register(NAME, _packed_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
