"""Attention inside each example, against torch's own under a mask that says the same."""

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from stages.model import attention
from stages.model.attention import make_blocks
from stages.pipeline.errors import UserError

SIZE = 8
WIDTH = 80
MODULE = torch.nn.Module()  # of which transformers' own attention asks only whether it has key groups and is causal
LENGTHS = st.lists(st.integers(1, 70), min_size=1, max_size=6)

Heads = tuple[int, int]
"""Of queries, and of keys and values."""


def positions_of(rows: list[list[int]]) -> Tensor:
    """Positions, int64 (batch, WIDTH), of examples of these lengths in each row; what is left over is padding."""
    laid_out = []
    for lengths in rows:
        positions = [at for length in lengths for at in range(length)][:WIDTH]
        laid_out.append(positions + list(range(WIDTH - len(positions))))
    return torch.tensor(laid_out)


def make_inputs(positions: Tensor, heads: Heads, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Query, key and value, (batch, heads, time, SIZE), that want gradients."""
    dice = torch.Generator().manual_seed(0)
    queries, keys = heads
    shapes = [(len(positions), count, WIDTH, SIZE) for count in (queries, keys, keys)]
    return [torch.randn(shape, generator=dice).to(dtype).requires_grad_() for shape in shapes]


def mask_of(positions: Tensor) -> Tensor:
    """bool (batch, 1, time, time): what each token sees, from the definition."""
    example = (positions == 0).cumsum(1)
    same = example[:, :, None] == example[:, None, :]
    return (same & torch.ones(WIDTH, WIDTH, dtype=torch.bool).tril())[:, None]


def by_mask(inputs: list[Tensor], positions: Tensor, scaling: float | None) -> Tensor:
    query, key, value = (x.float() for x in inputs)
    attended = scaled_dot_product_attention(
        query, key, value, attn_mask=mask_of(positions), scale=scaling, enable_gqa=query.shape[1] != key.shape[1]
    )
    return attended.transpose(1, 2)


def packed(inputs: list[Tensor], **others: Any) -> Tensor:
    """As transformers calls it: by its name."""
    function: Callable[..., Any] = AttentionInterface()[attention.NAME]
    result: Tensor = function(MODULE, *inputs, **({"attention_mask": None} | others))[0]
    return result


def gradients_of(result: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    """Of a loss in which every number of the result counts differently."""
    weights = torch.randn(result.shape, generator=torch.Generator().manual_seed(1))
    return list(torch.autograd.grad((result.float() * weights).sum(), inputs))


@given(rows=st.lists(LENGTHS, min_size=1, max_size=3), heads=st.sampled_from([(4, 4), (4, 2), (3, 1)]))
@settings(max_examples=40, deadline=None)
def test_it_is_masked_attention(rows: list[list[int]], heads: Heads) -> None:
    positions = positions_of(rows)
    inputs = make_inputs(positions, heads)
    found = packed(inputs, blocks=make_blocks(positions))
    expected = by_mask(inputs, positions, None)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    for ours, theirs in zip(gradients_of(found, inputs), gradients_of(expected, inputs), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_scaling_counts() -> None:
    positions = positions_of([[30, 40], [80]])
    inputs = make_inputs(positions, (2, 2))
    found = packed(inputs, blocks=make_blocks(positions), scaling=0.7)
    torch.testing.assert_close(found, by_mask(inputs, positions, 0.7), rtol=1e-4, atol=1e-5)


def test_in_bfloat16_it_is_as_near_as_bfloat16_can_be() -> None:
    positions = positions_of([[30, 40], [80]])
    inputs = make_inputs(positions, (4, 2), torch.bfloat16)
    found = packed(inputs, blocks=make_blocks(positions))
    expected = by_mask(inputs, positions, None)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), expected, rtol=2**-7, atol=1e-5)
    for ours, theirs in zip(gradients_of(found, inputs), gradients_of(expected, inputs), strict=True):
        assert ours.dtype == torch.bfloat16
        torch.testing.assert_close(ours.float(), theirs.float(), rtol=2e-2, atol=2e-2)


def test_dropout_is_applied() -> None:
    """Each probability is dropped with that chance, and what is left is scaled up: the mean stays."""
    positions = positions_of([[64]])
    query, key, value = make_inputs(positions, (4, 4))
    value = torch.ones_like(value)
    torch.manual_seed(0)
    result = packed([query, key, value], blocks=make_blocks(positions), dropout=0.5)
    assert result[0, 0].detach().unique().tolist() in ([0.0], [2.0], [0.0, 2.0]), "the first token sees itself alone"
    assert result.mean().item() == pytest.approx(1.0, abs=0.1)
    assert result.std().item() > 0.1


# Without blocks


def test_without_blocks_the_mask_counts() -> None:
    positions = positions_of([[30, 40], [80]])
    inputs = make_inputs(positions, (2, 2))
    found = packed(inputs, attention_mask=mask_of(positions))
    torch.testing.assert_close(found, by_mask(inputs, positions, None), rtol=1e-4, atol=1e-5)


def test_with_neither_examples_would_see_each_other_and_it_refuses() -> None:
    with pytest.raises(UserError, match=r"base_model: .* cannot keep packed examples apart; choose another model"):
        packed(make_inputs(positions_of([[80]]), (2, 2)))


# A GPU's kernel, stood in for by a plain one


def varlen_reference(*arguments: Any, **named: Any) -> Tensor:
    """What torch's varlen_attn computes of its arguments, sequence by sequence."""
    asked = inspect.signature(varlen_attn).bind(*arguments, **named).arguments
    query, key, value = asked["query"], asked["key"], asked["value"]
    starts = asked["cu_seq_q"]
    assert starts.dtype == asked["cu_seq_k"].dtype == torch.int32, "which the kernel takes alone"
    lengths = torch.diff(starts).tolist()
    assert sum(lengths) == len(query)
    assert asked["max_q"] == asked["max_k"] == max(lengths)
    assert asked["window_size"] == (-1, 0), "causal"
    assert asked.get("enable_gqa", False) == (query.shape[1] != key.shape[1])
    groups = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(groups, 1) for x in (key, value))
    parts = []
    for q, k, v in zip(*(x.split(lengths) for x in (query, key, value)), strict=True):
        scores = torch.einsum("qhs,khs->hqk", q, k) * (asked.get("scale") or SIZE**-0.5)
        hidden = torch.ones(len(q), len(q), dtype=torch.bool).triu(1)
        parts.append(torch.einsum("hqk,khs->qhs", scores.masked_fill(hidden, float("-inf")).softmax(-1), v))
    return torch.cat(parts)


@given(
    rows=st.lists(LENGTHS, min_size=1, max_size=3),
    heads=st.sampled_from([(4, 4), (4, 2)]),
    scaling=st.sampled_from([None, 0.7]),
)
@settings(max_examples=30, deadline=None)
def test_the_gpus_kernel_is_asked_for_the_same(rows: list[list[int]], heads: Heads, scaling: float | None) -> None:
    positions = positions_of(rows)
    blocks = make_blocks(positions)
    tokens = [x.transpose(1, 2).flatten(0, 1) for x in make_inputs(positions, heads)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "varlen_attn", varlen_reference)
        found = attention._by_flash_attention(tokens, scaling, blocks)
    torch.testing.assert_close(found, attention._block_by_block(tokens, 0.0, scaling, blocks), rtol=1e-4, atol=1e-5)


class OnGpu(torch.Tensor):
    """A tensor that says it is on a GPU."""

    is_cuda = True


@pytest.mark.parametrize(
    ("dtype", "dropout", "capability", "kernel"),
    [
        (torch.bfloat16, 0.0, (8, 0), True),
        (torch.float16, 0.0, (9, 0), True),
        (torch.float32, 0.0, (8, 0), False),
        (torch.bfloat16, 0.1, (8, 0), False),
        (torch.bfloat16, 0.0, (7, 5), False),
    ],
)
def test_that_kernel_is_taken_where_it_can(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, dropout: float, capability: tuple[int, int], kernel: bool
) -> None:
    taken = []

    def note(by_kernel: bool) -> Callable[..., Tensor]:
        def attend(tokens: list[Tensor], *_: Any) -> Tensor:
            taken.append(by_kernel)
            return tokens[0]

        return attend

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(attention, "_by_flash_attention", note(True))
    monkeypatch.setattr(attention, "_block_by_block", note(False))
    positions = positions_of([[30, 40], [80]])
    inputs: list[Any] = [x.detach().as_subclass(OnGpu) for x in make_inputs(positions, (4, 2), dtype)]
    result = packed(inputs, blocks=make_blocks(positions), dropout=dropout)
    assert taken == [kernel]
    assert torch.equal(result, inputs[0].transpose(1, 2)), "each token back in its place"
