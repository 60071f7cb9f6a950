"""Rows as tensors: positions start anew with each example, and every token is in exactly one block."""

import dataclasses
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.model import batches
from stages.model.attention import LENGTH_STEP
from stages.model.batches import Batch, iterate_batches, make_batch
from stages.tokens.arrays import NO_EXAMPLE, TokenArrays
from stages.tokens.labels import IGNORE_INDEX
from tests.model.making import CPU, arrays, examples
from tests.tokens.examples import END, make_single_turns, naive_arrays

PACKED = arrays(examples(30))

LENGTHS = st.lists(st.lists(st.integers(2, 70), min_size=1, max_size=5), min_size=1, max_size=5)
"""Tokens of the examples of each row; the last has no position of its own, since no token follows."""


def arrays_of(lengths: Sequence[Sequence[int]]) -> TokenArrays:
    """Rows of examples of these lengths, laid out position by position."""
    dice = np.random.default_rng(0)
    tokens = [[*dice.integers(3, 1000, length - 1).tolist(), END] for row in lengths for length in row]
    row_of = [number for number, row in enumerate(lengths) for _ in row]
    laid_out = naive_arrays(make_single_turns(tokens, [1] * len(tokens)), row_of, mask_instruction=True)
    return TokenArrays(
        **{name: np.array(rows) for name, rows in laid_out.items()}, ids=[str(number) for number in range(len(tokens))]
    )


def check_same(found: Batch, expected: Batch) -> None:
    for name in Batch._fields:
        if name != "blocks":
            assert torch.equal(getattr(found, name), getattr(expected, name)), name
    for field in dataclasses.fields(expected.blocks):
        mine, theirs = getattr(found.blocks, field.name), getattr(expected.blocks, field.name)
        assert torch.equal(mine, theirs) if isinstance(theirs, torch.Tensor) else mine == theirs, field.name


@given(lengths=LENGTHS, data=st.data())
@settings(max_examples=100, deadline=None)
def test_a_batch_is_its_rows(lengths: list[list[int]], data: st.DataObject) -> None:
    made = arrays_of(lengths)
    rows = data.draw(st.lists(st.integers(0, len(lengths) - 1), min_size=1, max_size=6))
    batch = make_batch(made, rows, CPU)
    width = max(sum(length - 1 for length in lengths[row]) for row in rows)
    assert batch.input_ids.shape == (len(rows), width), "no wider than the longest row"
    for at, row in enumerate(rows):
        for name in ("input_ids", "labels", "next_ids", "in_response", "example"):
            assert getattr(batch, name)[at].tolist() == getattr(made, name)[row, :width].tolist()
        positions = [position for length in lengths[row] for position in range(length - 1)]
        assert batch.position_ids[at].tolist() == positions + list(range(width - len(positions)))
    assert (batch.next_ids[batch.example == NO_EXAMPLE] == IGNORE_INDEX).all()


@given(lengths=LENGTHS)
@settings(max_examples=100, deadline=None)
def test_blocks_hold_every_token_once_in_the_order_of_its_example(lengths: list[list[int]]) -> None:
    batch = make_batch(arrays_of(lengths), range(len(lengths)), CPU)
    blocks = batch.blocks
    tokens = torch.arange(batch.input_ids.numel())
    assert torch.equal(blocks.there[blocks.back], tokens)
    assert torch.equal(blocks.there[~blocks.repeats].sort().values, tokens)
    runs, start = [], 0
    for count, length in blocks.shapes:
        assert length % LENGTH_STEP == 0
        for slots in range(start, start + count * length, length):
            here = blocks.there[slots : slots + length]
            kept = here[~blocks.repeats[slots : slots + length]]
            assert torch.equal(here[: len(kept)], kept), "repeats come last"
            assert length - len(kept) < LENGTH_STEP
            assert (here[len(kept) :] == kept[-1]).all()
            runs.append(kept)
        start += count * length
    assert start == len(blocks.there)
    in_order = sorted(runs, key=lambda run: int(run[0]))
    assert torch.equal(torch.cat(in_order), tokens)
    assert all(batch.position_ids.flatten()[run].tolist() == list(range(len(run))) for run in in_order)
    bounds = [*(int(run[0]) for run in in_order), len(tokens)]
    assert blocks.starts.tolist() == bounds
    assert blocks.longest == max(len(run) for run in in_order)


CHUNKS = [[0, 2], [1], [3, 4, 0]]


def test_batches_come_in_order() -> None:
    found = list(iterate_batches(PACKED, CHUNKS, CPU))
    for batch, rows in zip(found, CHUNKS, strict=True):
        check_same(batch, make_batch(PACKED, rows, CPU))


def test_for_a_gpu_they_are_the_same_and_on_their_way(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def moved(batch: Batch, device: torch.device) -> Batch:
        asked.append(device)
        return batch

    monkeypatch.setattr(batches, "_moved", moved)
    found = list(iterate_batches(PACKED, CHUNKS, torch.device("cuda")))
    for batch, rows in zip(found, CHUNKS, strict=True):
        check_same(batch, make_batch(PACKED, rows, CPU))
    assert asked == [torch.device("cuda")] * len(CHUNKS)


def test_nothing_is_lost_or_left_behind_on_the_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """`meta` is a device that every machine has, if only to be moved to."""
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor.clone())
    batch = make_batch(PACKED, [0, 1, 2], CPU)
    check_same(batches._moved(batch, CPU), batch)
    away = batches._moved(batch, torch.device("meta"))
    tensors = [*away, *(getattr(away.blocks, field.name) for field in dataclasses.fields(away.blocks))]
    devices = [tensor.device.type for tensor in tensors if isinstance(tensor, torch.Tensor)]
    assert devices == ["meta"] * (len(Batch._fields) - 1 + 4)
    assert (away.blocks.shapes, away.blocks.longest) == (batch.blocks.shapes, batch.blocks.longest)
