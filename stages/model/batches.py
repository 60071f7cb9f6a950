"""Rows of token arrays as tensors: attention stays inside each example, positions start anew with it."""

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch

from stages.model.attention import Blocks, make_blocks
from stages.tokens.arrays import NO_EXAMPLE, TokenArrays


class Batch(NamedTuple):
    """A few rows, cut to the longest of them."""

    input_ids: torch.Tensor
    """int64 (batch, time)."""
    position_ids: torch.Tensor
    """int64 (batch, time): 0 at the first token of every example."""
    blocks: Blocks
    """Which tokens see each other."""
    labels: torch.Tensor
    """int64 (batch, time): what training wants, IGNORE_INDEX elsewhere."""
    next_ids: torch.Tensor
    """int64 (batch, time): the next token, IGNORE_INDEX at padding."""
    in_response: torch.Tensor
    """bool (batch, time)."""
    example: torch.Tensor
    """int64 (batch, time): position of the example in the split, NO_EXAMPLE at padding."""


def make_batch(arrays: TokenArrays, rows: Sequence[int], device: torch.device) -> Batch:
    """The batch of these rows on `device`."""
    real = arrays.example[rows] != NO_EXAMPLE
    width = int(np.flatnonzero(real.any(axis=0))[-1]) + 1

    def tensor(array: np.ndarray, kind: torch.dtype = torch.int64) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(array[rows, :width])).to(device=device, dtype=kind)

    example = tensor(arrays.example)
    position = torch.arange(width, device=device).expand(len(rows), width)
    starts = torch.ones_like(example, dtype=torch.bool)
    starts[:, 1:] = example[:, 1:] != example[:, :-1]
    start_of = torch.cummax(torch.where(starts, position, 0), dim=1).values
    position_ids = position - start_of
    return Batch(
        input_ids=tensor(arrays.input_ids),
        position_ids=position_ids,
        blocks=make_blocks(position_ids),
        labels=tensor(arrays.labels),
        next_ids=tensor(arrays.next_ids),
        in_response=tensor(arrays.in_response, torch.bool),
        example=example,
    )


def iterate_batches(arrays: TokenArrays, chunks: Iterable[Sequence[int]], device: torch.device) -> Iterator[Batch]:
    """The batch of each chunk of rows. For a GPU the next one is made, and on its way, while the last is computed."""
    if device.type == "cpu":
        yield from (make_batch(arrays, rows, device) for rows in chunks)
        return
    with ThreadPoolExecutor(1) as pool:
        made = [pool.submit(make_batch, arrays, rows, torch.device("cpu")) for rows in chunks]
        for batch in made:
            yield _moved(batch.result(), device)


def _moved(batch: Batch, device: torch.device) -> Batch:
    def there(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.pin_memory().to(device, non_blocking=True)

    blocks = replace(
        batch.blocks,
        there=there(batch.blocks.there),
        back=there(batch.blocks.back),
        repeats=there(batch.blocks.repeats),
        starts=there(batch.blocks.starts),
    )
    tensors = {name: there(value) for name, value in batch._asdict().items() if isinstance(value, torch.Tensor)}
    return batch._replace(blocks=blocks, **tensors)
