"""Decoder layers of Llama's kind with their forward and backward passes written out, for CPUs.

transformers' layers stay what they are and keep their weights; `fuse` gives each a forward of two autograd functions
that need a fifth of the memory traffic: elementwise work is fused (stages/model/kernels.py), the residual is added by
the matrix product, attention runs as matrix products over examples of like length, and the norms' results are computed
anew in the backward pass instead of being kept.
"""

import types
from collections.abc import Iterator
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.models.llama.modeling_llama import LlamaDecoderLayer
from transformers.models.mistral.modeling_mistral import MistralDecoderLayer

from stages.model import kernels
from stages.model.attention import Blocks
from stages.model.gradients import give, receiver_of

KEPT_LENGTH = 256
"""Attention probabilities of examples up to this length are kept for the backward pass, longer ones computed anew."""


def can_fuse(model: PreTrainedModel) -> bool:
    """Whether all layers of `model` are of this kind."""
    layers: Any = getattr(model.base_model, "layers", None)
    return bool(layers) and all(_is_of_this_kind(layer) for layer in layers)


def fuse(model: PreTrainedModel) -> None:
    """Give the layers and the embeddings of a model that `can_fuse` the fused forward."""
    for layer in cast(Any, model.base_model).layers:
        layer.forward = types.MethodType(_forward, layer)
        for weight in (layer.mlp.gate_proj.weight, layer.mlp.up_proj.weight):
            # Products with these and their gradients come out as they lie in memory: oneDNN is slow at transposing.
            weight.data = weight.data.t().contiguous().t()
    embeddings: Any = model.get_input_embeddings()
    if type(embeddings) is torch.nn.Embedding:
        cast(Any, embeddings).forward = types.MethodType(_embed, embeddings)


def _is_of_this_kind(layer: Any) -> bool:
    if type(layer) not in (LlamaDecoderLayer, MistralDecoderLayer):
        return False
    config: Any = layer.self_attn.config
    linears = [module for module in layer.modules() if isinstance(module, torch.nn.Linear)]
    return (
        config.hidden_act == "silu"
        and config.attention_dropout == 0.0
        and getattr(config, "sliding_window", None) is None
        and len(linears) == 7
        and all(type(linear) is torch.nn.Linear and linear.bias is None for linear in linears)
    )


def _forward(
    layer: Any,
    hidden_states: Tensor,
    *,
    position_embeddings: tuple[Tensor, Tensor],
    blocks: Blocks | None = None,
    **others: Any,
) -> Tensor:
    """The forward of a decoder layer on packed rows, (batch, time, size) to the same; without blocks its own."""
    if blocks is None:
        own: Tensor = type(layer).forward(layer, hidden_states, position_embeddings=position_embeddings, **others)
        return own
    inputs = (layer, hidden_states, position_embeddings, blocks)
    if layer.gradient_checkpointing and layer.training:  # which transformers has in the forward that is replaced here
        result: Tensor = checkpoint(_layer, *inputs, use_reentrant=False, preserve_rng_state=False)
        return result
    return _layer(*inputs)


def _layer(layer: Any, hidden_states: Tensor, position_embeddings: tuple[Tensor, Tensor], blocks: Blocks) -> Tensor:
    """The same by the two functions below."""
    attention, mlp, size = layer.self_attn, layer.mlp, layer.self_attn.head_dim
    tokens = hidden_states.flatten(0, 1)
    cos, sin = (table.expand(len(hidden_states), -1, -1).reshape(-1, size) for table in position_embeddings)
    heads = Heads(attention.q_proj.out_features // size, attention.k_proj.out_features // size, size)
    layout = make_layout(blocks, heads, cos.float(), sin.float(), attention.scaling)
    norm, eps = layer.input_layernorm.weight, layer.input_layernorm.variance_epsilon
    weights = [linear.weight for linear in (attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj)]
    tokens = cast(Any, _Attention).apply(tokens, norm, *weights, layout, eps)
    norm, eps = layer.post_attention_layernorm.weight, layer.post_attention_layernorm.variance_epsilon
    tokens = cast(Any, _Mlp).apply(tokens, norm, mlp.gate_proj.weight, mlp.up_proj.weight, mlp.down_proj.weight, eps)
    result: Tensor = tokens.view_as(hidden_states)
    return result


class Heads(NamedTuple):
    """The shape of a layer's attention."""

    queries: int
    keys: int
    """Key heads, as many as value heads; each serves queries / keys query heads."""
    size: int

    @property
    def all(self) -> int:
        """Heads of query, key and value together."""
        return self.queries + 2 * self.keys


class Layout(NamedTuple):
    """Where the heads of each token go for attention. A row is one head of one token, (size,)."""

    heads: Heads
    cos: Tensor
    """float32 (tokens, size)."""
    sin: Tensor
    scale: float
    there: Tensor
    """int64 (rows,): the row of the projections, (tokens * heads.all, size), for each row of queries, keys, values."""
    back: Tensor
    """int64 (tokens * heads.all,): the reverse."""
    outputs_there: Tensor
    """int64 (rows of queries,): the row of attention's result, (tokens * heads.queries, size), for each query row."""
    outputs_back: Tensor
    repeats: Tensor
    """bool (rows of queries,): those beyond the end of an example."""
    shapes: list[tuple[int, int]]
    """(examples, length) of each block."""

    def views(self, rows: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Block by block queries, (examples * keys, queries / keys * length, size), keys and values.

        These are (examples * keys, length, size).
        """
        slots = len(self.repeats) // self.heads.queries
        parts = rows.split([slots * self.heads.queries, slots * self.heads.keys, slots * self.heads.keys])
        start = 0
        for examples, length in self.shapes:
            stop = start + examples * length
            yield tuple(
                part[start * count : stop * count].view(examples * self.heads.keys, -1, self.heads.size)
                for part, count in zip(parts, (self.heads.queries, self.heads.keys, self.heads.keys), strict=True)
            )
            start = stop

    def positions(self, length: int) -> tuple[Tensor, Tensor]:
        """Positions of query rows and of keys in a block."""
        keys = torch.arange(length)
        return keys.repeat(self.heads.queries // self.heads.keys), keys


def make_layout(blocks: Blocks, heads: Heads, cos: Tensor, sin: Tensor, scale: float) -> Layout:
    """The layout of a batch; every layer asks for the same one, so that it is kept with the blocks."""
    if heads not in blocks.layouts:
        there, back, start = [], [], 0
        for first, count in ((0, heads.queries), (heads.queries, heads.keys), (heads.queries + heads.keys, heads.keys)):
            places = _rows_of_slots(blocks.shapes, count)
            rows = torch.empty(places.numel(), dtype=torch.int64)
            rows[places.flatten()] = (blocks.there[:, None] * heads.all + first + torch.arange(count)).flatten()
            there.append(rows)
            back.append(places[blocks.back] + start)
            start += places.numel()
        places = _rows_of_slots(blocks.shapes, heads.queries)
        outputs_there = torch.empty(places.numel(), dtype=torch.int64)
        outputs_there[places.flatten()] = (
            blocks.there[:, None] * heads.queries + torch.arange(heads.queries)
        ).flatten()
        repeats = torch.empty(places.numel(), dtype=torch.bool)
        repeats[places.flatten()] = blocks.repeats[:, None].expand(-1, heads.queries).flatten()
        blocks.layouts[heads] = Layout(
            heads,
            cos,
            sin,
            scale,
            torch.cat(there),
            torch.cat(back, 1).flatten(),
            outputs_there,
            places[blocks.back].flatten(),
            repeats,
            blocks.shapes,
        )
    layout: Layout = blocks.layouts[heads]
    return layout


def _rows_of_slots(shapes: list[tuple[int, int]], heads: int) -> Tensor:
    """int64 (slots, heads): the row of each head of each slot where rows go by block, example, head, position."""
    parts, start = [], 0
    for examples, length in shapes:
        rows = torch.arange(start, start + examples * heads * length).view(examples, heads, length)
        parts.append(rows.transpose(1, 2).reshape(-1, heads))
        start += rows.numel()
    return torch.cat(parts)


class _Attention(torch.autograd.Function):
    """hidden + attention(norm(hidden)), on (tokens, size)."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        norm: Tensor,
        wq: Tensor,
        wk: Tensor,
        wv: Tensor,
        wo: Tensor,
        layout: Layout,
        eps: float,
    ) -> Tensor:
        heads = layout.heads
        projected = kernels.rms_norm(hidden, norm, eps) @ torch.cat([wq, wk, wv]).t()
        turned = kernels.rotate(projected, layout.cos, layout.sin, heads.all, heads.queries + heads.keys)
        rows = turned.view(-1, heads.size).index_select(0, layout.there)
        del projected, turned
        results = rows.new_empty(len(layout.repeats), heads.size)
        kept = []
        start = 0
        for query, key, value in layout.views(rows):
            p = _probabilities(layout, query, key)
            stop = start + query.shape[0] * query.shape[1]
            torch.bmm(p, value, out=results[start:stop].view_as(query))
            start = stop
            kept.append(p if key.shape[1] <= KEPT_LENGTH else None)
        outputs = results.index_select(0, layout.outputs_back).view(len(hidden), -1)
        ctx.save_for_backward(hidden, norm, wq, wk, wv, wo, rows, outputs, *kept)
        ctx.layout, ctx.eps = layout, eps
        return torch.addmm(hidden, outputs, wo.t())

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        hidden, norm, wq, wk, wv, wo, rows, outputs, *kept = ctx.saved_tensors
        layout, gradient = ctx.layout, gradients[0]
        of_wo = give(wo, gradient.t() @ outputs)
        of_outputs = (gradient @ wo).view(-1, layout.heads.size).index_select(0, layout.outputs_there)
        of_outputs = kernels.zero_where(of_outputs, layout.repeats)
        of_rows = torch.empty_like(rows)
        start = 0
        for (query, key, value), (of_query, of_key, of_value), p in zip(
            layout.views(rows), layout.views(of_rows), kept, strict=True
        ):
            if p is None:
                p = _probabilities(layout, query, key)
            stop = start + query.shape[0] * query.shape[1]
            g = of_outputs[start:stop].view_as(query)
            start = stop
            of_scores = kernels.softmax_backward(p, torch.bmm(g, value.transpose(1, 2)), layout.scale)
            torch.bmm(p.transpose(1, 2), g, out=of_value)
            torch.bmm(of_scores, key, out=of_query)
            torch.bmm(of_scores.transpose(1, 2), query, out=of_key)
        heads = layout.heads
        of_turned = of_rows.index_select(0, layout.back).view(len(hidden), -1)
        of_projected = kernels.rotate(of_turned, layout.cos, -layout.sin, heads.all, heads.queries + heads.keys)
        weights = torch.cat([wq, wk, wv])
        of_weights = of_projected.t() @ kernels.rms_norm(hidden, norm, ctx.eps)
        of_hidden, of_norm = kernels.rms_norm_backward(of_projected @ weights, hidden, norm, ctx.eps, gradient)
        parts = of_weights.split([len(wq), len(wk), len(wv)])
        of_projections = [give(weight, part) for weight, part in zip((wq, wk, wv), parts, strict=True)]
        return of_hidden, of_norm.to(norm.dtype), *of_projections, of_wo, None, None


def _probabilities(layout: Layout, query: Tensor, key: Tensor) -> Tensor:
    """Attention probabilities, (batch, queries, keys)."""
    return kernels.causal_softmax(torch.bmm(query, key.transpose(1, 2)), layout.scale, *layout.positions(key.shape[1]))


class _Mlp(torch.autograd.Function):
    """hidden + mlp(norm(hidden)), on (tokens, size)."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, norm: Tensor, w_gate: Tensor, w_up: Tensor, w_down: Tensor, eps: float
    ) -> Tensor:
        normed = kernels.rms_norm(hidden, norm, eps)
        gate, up = normed @ w_gate.t(), normed @ w_up.t()
        ctx.save_for_backward(hidden, norm, w_gate, w_up, w_down, gate, up)
        ctx.eps = eps
        return torch.addmm(hidden, kernels.swiglu(gate, up), w_down.t())

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        hidden, norm, w_gate, w_up, w_down, gate, up = ctx.saved_tensors
        gradient = gradients[0]
        product, of_gate, of_up = kernels.swiglu_backward(gate, up, gradient @ w_down)
        # oneDNN multiplies a transposed bfloat16 matrix at half its speed: the narrower one is transposed beforehand.
        of_w_down = give(w_down, kernels.transpose(gradient) @ product)
        normed = kernels.transpose(kernels.rms_norm(hidden, norm, ctx.eps))
        of_w_gate, of_w_up = give(w_gate, (normed @ of_gate).t()), give(w_up, (normed @ of_up).t())
        of_normed = (of_gate @ w_gate).addmm_(of_up, w_up)
        of_hidden, of_norm = kernels.rms_norm_backward(of_normed, hidden, norm, ctx.eps, gradient)
        return of_hidden, of_norm.to(norm.dtype), of_w_gate, of_w_up, of_w_down, None


def _embed(embeddings: torch.nn.Embedding, ids: Tensor) -> Tensor:
    """The forward of the embeddings."""
    embedded: Tensor = cast(Any, _Embed).apply(embeddings.weight, ids, embeddings.padding_idx)
    return embedded


class _Embed(torch.autograd.Function):
    """Rows of the embeddings; their gradient is that of the rows, and not a matrix of the vocabulary's size."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, ids: Tensor, padding: int | None) -> Tensor:
        ctx.save_for_backward(weight, ids)
        ctx.padding = padding
        return torch.nn.functional.embedding(ids, weight)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        weight, ids = ctx.saved_tensors
        numbers, rows = ids.flatten(), gradients[0].flatten(0, -2)
        if ctx.padding is not None:  # torch trains no embedding of this token either
            real = numbers != ctx.padding
            numbers, rows = numbers[real], rows[real]
        receiver = receiver_of(weight)
        if receiver is None:
            return torch.zeros_like(weight).index_add_(0, numbers, rows), None, None
        receiver.take_rows(numbers, rows)
        return None, None, None
