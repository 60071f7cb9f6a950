"""Rows of token arrays as tensors: attention stays inside each example, positions start anew with it."""

from collections.abc import Sequence
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
    attention_mask: torch.Tensor
    """bool (batch, 1, time, time): True where a query (third) sees a key (fourth); for models that ignore `blocks`."""
    blocks: Blocks
    """The same for our own attention."""
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
    same = example[:, :, None] == example[:, None, :]
    causal = torch.ones(width, width, dtype=torch.bool, device=device).tril()
    position_ids = position - start_of
    return Batch(
        input_ids=tensor(arrays.input_ids),
        position_ids=position_ids,
        attention_mask=(same & causal)[:, None],
        blocks=make_blocks(position_ids),
        labels=tensor(arrays.labels),
        next_ids=tensor(arrays.next_ids),
        in_response=tensor(arrays.in_response, torch.bool),
        example=example,
    )
