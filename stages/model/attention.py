"""Attention inside each example of a packed row, at the cost of the examples' lengths and not of the row's.

Tokens are gathered into blocks of examples of like length, attention runs block by block, and the results go back.
Registered with transformers as `packed`; models hand the `blocks` keyword through to it.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from stages.pipeline.errors import UserError

NAME = "packed"

LENGTH_STEP = 32
"""Examples share a block when their lengths, rounded up to this, are equal: few kernel calls, little padding."""


@dataclass(frozen=True)
class Blocks:
    """Where each token of a batch, flattened to (batch * time,), goes and comes back from."""

    there: torch.Tensor
    """int64 (slots,): the token in each slot; a slot beyond an example's end repeats its last token."""
    back: torch.Tensor
    """int64 (batch * time,): the slot of each token."""
    repeats: torch.Tensor
    """bool (slots,): slots beyond the end of an example."""
    shapes: list[tuple[int, int]]
    """(examples, length) of each block; its slots follow those of the block before."""
    starts: torch.Tensor
    """int32 (examples + 1,): the first token of each example, and the number of tokens."""
    longest: int
    """Tokens in the longest example."""
    layouts: dict[Any, Any] = field(default_factory=dict)
    """What stages/model/fused.py works out from these blocks, once for all layers."""


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
    bounds = torch.cat([starts, starts.new_tensor([position_ids.numel()])]).to(torch.int32)
    return Blocks(torch.cat(there), back, torch.cat(repeats), shapes, bounds, int(lengths.max()))


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


def packed_attention(
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
        if attention_mask is None:
            raise UserError("base_model: this kind of model cannot keep packed examples apart; choose another model")
        out: tuple[torch.Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
        return out
    tokens = [x.transpose(1, 2).flatten(0, 1) for x in (query, key, value)]
    # FlashAttention knows neither float32 nor dropout, and starts with this generation of GPUs.
    if query.is_cuda and query.dtype != torch.float32 and not dropout and torch.cuda.get_device_capability() >= (8, 0):
        result = _by_flash_attention(tokens, scaling, blocks)
    else:
        result = _block_by_block(tokens, dropout, scaling, blocks)
    return result.unflatten(0, (query.shape[0], query.shape[2])), None


def _by_flash_attention(tokens: list[torch.Tensor], scaling: float | None, blocks: Blocks) -> torch.Tensor:
    """Attention of query, key and value, each (tokens, heads, size), by the GPU's kernel for any lengths."""
    query, key, value = tokens
    attended: torch.Tensor = varlen_attn(
        query,
        key,
        value,
        blocks.starts,
        blocks.starts,
        blocks.longest,
        blocks.longest,
        scale=scaling,
        window_size=(-1, 0),
        enable_gqa=query.shape[1] != key.shape[1],
    )  # type: ignore[assignment]
    return attended


def _block_by_block(tokens: list[torch.Tensor], dropout: float, scaling: float | None, blocks: Blocks) -> torch.Tensor:
    """The same by torch's general kernel, over examples of like length together."""
    moved = [_IntoSlots.apply(x, blocks) for x in tokens]
    if tokens[0].device.type == "cpu":  # its bfloat16 kernel has a backward four times as slow as float32's
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
    result: torch.Tensor = _OutOfSlots.apply(torch.cat(parts).to(tokens[0].dtype), blocks)
    return result


def _no_mask(*_: Any, **__: Any) -> None:
    """Blocks say it all."""


AttentionInterface.register(NAME, packed_attention)
AttentionMaskInterface.register(NAME, _no_mask)
