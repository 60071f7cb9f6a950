"""Many texts read in one stream in which what several begin with stands once.

Texts in the order of their tokens share most with their neighbours: each adds to the stream what the one before it does
not begin with. The stream is cut into rows; a row's tokens attend to those before them in their own text, wherever in
the row they stand, and of earlier rows the keys and values of one text are kept, the one that the next row goes on
with. Registered with transformers as `prefixed`; models hand the `prefixed` keyword through to it.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface

from stages.model.slots import UnsupportedModelError, check_usual

NAME = "prefixed"

TOGETHER = 256
"""Tokens of short stretches after the same beginning that attend in one call: fewer calls, few products in vain."""


class Stream(NamedTuple):
    """Texts as a stream of tokens."""

    tokens: np.ndarray
    """int64 (tokens,)."""
    places: np.ndarray
    """int64 (tokens,): the place of each token in its text."""
    starts: np.ndarray
    """int64 (texts + 1,): where in the stream each text's own tokens begin."""
    shared: np.ndarray
    """int64 (texts,): how many tokens it begins with that stand earlier in the stream."""


def make_stream(texts: Sequence[np.ndarray]) -> Stream:
    """The stream of different texts, int (time,) each, that are sorted by their tokens."""
    shared = np.array([0, *(_common(*pair) for pair in pairwise(texts))], dtype=np.int64)
    lengths = np.array([len(text) for text in texts], dtype=np.int64)
    own = [text[start:] for text, start in zip(texts, shared, strict=True)]
    places = [np.arange(start, stop) for start, stop in zip(shared, lengths, strict=True)]
    starts = np.concatenate([[0], np.cumsum(lengths - shared)])
    return Stream(np.concatenate(own).astype(np.int64), np.concatenate(places), starts, shared)


def _common(first: np.ndarray, second: np.ndarray) -> int:
    """How many tokens both begin with."""
    size = min(len(first), len(second))
    differ = first[:size] != second[:size]
    return int(differ.argmax()) if differ.any() else size


class Unit(NamedTuple):
    """Tokens of a row that attend in one call."""

    queries: torch.Tensor
    """int64 (queries,): places in the row."""
    keys: torch.Tensor
    """int64 (keys,): places in what was kept and the row after it; the last are the queries themselves."""
    mask: torch.Tensor
    """float (queries, keys): 0 where a key is seen, else minus infinity."""


class Row(NamedTuple):
    """A stretch of the stream that is read in one pass."""

    start: int
    """Of the stream."""
    stop: int
    units: list[Unit]
    keep: torch.Tensor
    """int64: of what was kept and the row after it, what the next row's first token comes after."""


def rows_of(stream: Stream, size: int, dtype: torch.dtype, device: torch.device) -> Iterator[Row]:
    """Rows of up to `size` tokens, in order; masks are of the model's `dtype`."""
    longest = int(stream.places.max()) + 1
    where = np.zeros(longest, dtype=np.int64)  # of the text at hand, by place: in what is kept, or behind it in the row
    total, kept = len(stream.tokens), 0
    for start in range(0, total, size):
        stop = min(start + size, total)
        first = int(np.searchsorted(stream.starts, start, side="right")) - 1
        last = int(np.searchsorted(stream.starts, stop, side="left"))
        bounds = np.clip(stream.starts[first : last + 1], start, stop)
        stretches: list[list[tuple[np.ndarray, np.ndarray]]] = []
        open_at: dict[int, int] = {}  # by the length of the beginning: stretches that may take in another
        for begin, end in pairwise(bounds.tolist()):
            place = int(stream.places[begin])
            own = np.arange(begin, end) - start
            open_at = {length: at for length, at in open_at.items() if length <= place}
            at = open_at.get(place)
            if at is None or sum(len(found) for _, found in stretches[at]) + len(own) > TOGETHER:
                at = open_at[place] = len(stretches)
                stretches.append([])
            stretches[at].append((where[:place].copy(), own))
            where[place : place + len(own)] = kept + own
        after = int(stream.places[stop]) if stop < total else 0
        keep = where[:after].copy()
        units = [_unit(stretch, kept, dtype, device) for stretch in stretches]
        yield Row(start, stop, units, torch.from_numpy(keep).to(device))
        where[:after] = np.arange(after)
        kept = after


def _unit(stretches: Sequence[tuple[np.ndarray, np.ndarray]], kept: int, dtype: Any, device: torch.device) -> Unit:
    """Stretches of a row, each with what stands before it, which is the same for all."""
    before = stretches[0][0]
    queries = np.concatenate([own for _, own in stretches])
    number = np.repeat(np.arange(len(stretches)), [len(own) for _, own in stretches])
    seen = np.tril(number[:, None] == number[None, :])
    seen = np.concatenate([np.ones((len(queries), len(before)), dtype=bool), seen], axis=1)
    mask = torch.zeros(seen.shape, dtype=dtype).masked_fill_(torch.from_numpy(~seen), float("-inf"))
    keys = np.concatenate([before, kept + queries])
    return Unit(*(x.to(device) for x in (torch.from_numpy(queries), torch.from_numpy(keys), mask)))


class Prefixes:
    """Keys and values that are kept from row to row, in every layer.

    Attributes:
        longest: tokens of the longest text.
        layers: how many have attended since the last plan.
    """

    def __init__(self, longest: int) -> None:
        self.longest = longest
        self.layers = 0
        self._kept: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def plan(self, row: Row) -> None:
        """The next pass reads this row, which follows on the last one."""
        self.layers = 0
        self._row = row
        self._masks: list[torch.Tensor] | None = None

    def attend(
        self, module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float | None
    ) -> torch.Tensor:
        """(1, heads, time, size) to (1, time, heads, size), as planned."""
        self.layers += 1
        pair = tuple(x[0].transpose(0, 1) for x in (key, value))  # (time, heads, size)
        if module.layer_idx in self._kept:
            pair = tuple(torch.cat(parts) for parts in zip(self._kept[module.layer_idx], pair, strict=True))
        keys, values = pair
        sharing = query.shape[1] // key.shape[1]
        if self._masks is None:
            self._masks = [unit.mask.repeat(sharing, 1) for unit in self._row.units]
        asking = query[0].transpose(0, 1).contiguous()
        result = asking.new_empty(*asking.shape[:2], value.shape[3])
        for unit, mask in zip(self._row.units, self._masks, strict=True):
            # Heads that share keys are rows of one product.
            rows = asking.index_select(0, unit.queries).unflatten(1, (-1, sharing)).permute(1, 2, 0, 3).flatten(1, 2)
            k, v = (x.index_select(0, unit.keys).transpose(0, 1)[None] for x in (keys, values))
            found = scaled_dot_product_attention(rows[None], k, v, attn_mask=mask, scale=scaling)[0]
            found = found.unflatten(1, (sharing, -1)).permute(2, 0, 1, 3).flatten(1, 2)
            result.index_copy_(0, unit.queries, found)
        self._kept[module.layer_idx] = (keys.index_select(0, self._row.keep), values.index_select(0, self._row.keep))
        return result[None]


def _attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    prefixed: Prefixes | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    if prefixed is None:
        raise UnsupportedModelError("it does not hand keywords to its attention")
    check_usual(prefixed.longest, **kwargs)
    return prefixed.attend(module, query, key, value, scaling), None


AttentionInterface.register(NAME, _attention)
AttentionMaskInterface.register(NAME, lambda *args, **kwargs: None)
