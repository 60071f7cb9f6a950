"""How likely a model finds continuations of contexts, and whether it would write them itself.

Each different input is read once, and so is what several begin with (stages/model/prefixed.py): the examples before all
questions of a subject, a passage before its questions, a question before its answers. Answers of one token each come
from one place of one input.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from stages.model import prefixed
from stages.model.checkpoint import load_model, outline_of
from stages.model.prefixed import Prefixes, make_stream, rows_of
from stages.model.prepacked import can_prepack, prepack
from stages.model.slots import UnsupportedModelError
from stages.pipeline.errors import UserError
from stages.pipeline.progress import bar, say

ROWS = 2048
"""Tokens that a pass reads."""

LOGITS = 256
"""Places whose logits are at work at once, in float32."""

Request = tuple[Sequence[int], Sequence[int]]
"""Token ids of a context, at least one, and of its continuation."""


class Likelihood(NamedTuple):
    """Of one continuation."""

    log_probability: float
    """Sum over its tokens, in nats."""
    greedy: bool
    """Whether each of its tokens is the likeliest one in its place."""


class _Wanted(NamedTuple):
    """One row for each token of each continuation."""

    text: np.ndarray
    """int64: the input that it follows on."""
    place: np.ndarray
    """int64: of the token before it."""
    token: np.ndarray
    """int64."""
    request: np.ndarray
    """int64."""


class _Pass(NamedTuple):
    """Logits at some places, and the tokens wanted there."""

    logits: torch.Tensor
    """(places, vocabulary)."""
    at: np.ndarray
    """int64 (wanted,): the place of each, by its row in `logits`."""
    chosen: np.ndarray
    """int64 (wanted,): by its row in the table of all that is wanted."""


class Scorer:
    """Likelihoods by the model in a folder.

    Attributes:
        limit: the most tokens that the model takes.
    """

    def __init__(self, folder: Path, dtype: torch.dtype, device: torch.device) -> None:
        self._folder, self._dtype, self._device = folder, dtype, device
        self._usual = True
        self._load()

    def _load(self) -> None:
        model: Any = None
        if self._usual:
            model = load_model(self._folder, self._dtype, self._device, attention=prefixed.NAME)
            if can_prepack(self._dtype, self._device):
                prepack(model, ROWS)
        else:
            try:
                model = load_model(self._folder, self._dtype, self._device)
            except UserError:  # soft caps are more than torch's attention knows
                model = load_model(self._folder, self._dtype, self._device, attention="eager")
        self._model = model.eval()
        self.limit = _limit(model)

    @torch.inference_mode()
    def score(
        self, requests: Sequence[Request], label: str = "likelihoods", on_step: Callable[[], None] = lambda: None
    ) -> list[Likelihood]:
        """A likelihood for each request; `on_step` is called between passes.

        A context that is too long for the model with its continuation is cut at its beginning, which is said.

        Raises:
            UserError: a continuation alone is too long.
        """
        asked = [request for request in requests if len(request[1])]
        found = iter(self._score(asked, label, on_step) if asked else [])
        return [next(found) if len(continuation) else Likelihood(0.0, True) for _, continuation in requests]

    def _score(self, requests: Sequence[Request], label: str, on_step: Callable[[], None]) -> list[Likelihood]:
        texts, wanted, cut = _plan(requests, self.limit)
        if cut:
            say(f"  {label}: {cut} of {len(requests)} contexts are cut at their beginning to {self.limit} tokens")
        if self._usual:
            try:
                return self._sum(self._by_prefixes(texts, wanted, label, on_step), wanted, len(requests))
            except UnsupportedModelError as error:
                say(f"  {self._folder}: every input is read as a whole, by transformers' own attention ({error})")
                self._usual = False
                self._load()
        return self._sum(self._by_batches(texts, wanted, label, on_step), wanted, len(requests))

    def _sum(self, passes: Iterator[_Pass], wanted: _Wanted, count: int) -> list[Likelihood]:
        sums, greedy = np.zeros(count), np.ones(count, dtype=bool)
        for logits, at, chosen in passes:
            for start in range(0, len(logits), LOGITS):
                part = logits[start : start + LOGITS].float()
                here = (at >= start) & (at < start + LOGITS)
                rows = torch.from_numpy(at[here] - start).to(part.device)
                tokens = torch.from_numpy(wanted.token[chosen[here]]).to(part.device)
                found = (part[rows, tokens] - part.logsumexp(-1)[rows]).double().cpu().numpy()
                likeliest = (part.argmax(-1)[rows] == tokens).cpu().numpy()
                request = wanted.request[chosen[here]]
                np.add.at(sums, request, found)
                np.logical_and.at(greedy, request, likeliest)
        return [Likelihood(*pair) for pair in zip(sums.tolist(), greedy.tolist(), strict=True)]

    def _by_prefixes(
        self, texts: Sequence[np.ndarray], wanted: _Wanted, label: str, on_step: Callable[[], None]
    ) -> Iterator[_Pass]:
        stream = make_stream(texts)
        prefixes = Prefixes(int(stream.places.max()) + 1)
        at = _in_stream(wanted, stream)
        order = np.argsort(at, kind="stable")
        ordered = at[order]
        with bar(label, len(stream.tokens)) as progress:
            for row in rows_of(stream, ROWS, self._dtype, self._device):
                on_step()
                first, last = np.searchsorted(ordered, [row.start, row.stop])
                places, inverse = np.unique(ordered[first:last] - row.start, return_inverse=True)
                prefixes.plan(row)
                output = self._model(
                    input_ids=self._there(stream.tokens[row.start : row.stop][None]),
                    position_ids=self._there(stream.places[row.start : row.stop][None]),
                    use_cache=False,
                    logits_to_keep=self._there(places) if len(places) else 1,
                    prefixed=prefixes,
                )
                if prefixes.layers != self._model.config.get_text_config().num_hidden_layers:
                    raise UnsupportedModelError("its layers do not all attend in the usual way")
                progress.advance(row.stop - row.start)
                if len(places):
                    yield _Pass(output.logits[0], inverse, order[first:last])

    def _by_batches(
        self, texts: Sequence[np.ndarray], wanted: _Wanted, label: str, on_step: Callable[[], None]
    ) -> Iterator[_Pass]:
        """Longest first, padded on the right; a text that another begins with is read with that one."""
        covered = [len(a) <= len(b) and (b[: len(a)] == a).all() for a, b in pairwise(texts)]
        whole = np.flatnonzero([*(not found for found in covered), True])
        read_in = whole[np.searchsorted(whole, wanted.text)]
        lengths = np.array([len(texts[at]) for at in whole.tolist()])
        order = whole[np.argsort(-lengths, kind="stable")].tolist()
        with bar(label, len(order)) as progress:
            while order:
                on_step()
                width = len(texts[order[0]])
                size = max(1, ROWS // width)
                batch, order = np.array(order[:size]), order[size:]
                tokens, mask = np.zeros((2, len(batch), width), dtype=np.int64)
                for row, text in enumerate(batch):
                    tokens[row, : len(texts[text])] = texts[text]
                    mask[row, : len(texts[text])] = 1
                chosen = np.flatnonzero(np.isin(read_in, batch))
                number = {text: row for row, text in enumerate(batch.tolist())}
                rows = np.array([number[text] for text in read_in[chosen].tolist()], dtype=np.int64)
                kept, columns = np.unique(wanted.place[chosen], return_inverse=True)
                logits = self._model(
                    input_ids=self._there(tokens),
                    attention_mask=self._there(mask),
                    use_cache=False,
                    logits_to_keep=self._there(kept),
                ).logits
                pairs, inverse = np.unique(rows * len(kept) + columns, return_inverse=True)
                progress.advance(len(batch))
                yield _Pass(logits.flatten(0, 1)[self._there(pairs)], inverse, chosen)

    def _there(self, array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self._device)


def limit_of(folder: Path) -> int:
    """The most tokens that the model in a folder takes.

    Raises:
        UserError: the folder holds none that can be read.
    """
    return _limit(outline_of(folder))


def _limit(model: Any) -> int:
    return getattr(model.config.get_text_config(), "max_position_embeddings", None) or sys.maxsize


def _plan(requests: Sequence[Request], limit: int) -> tuple[list[np.ndarray], _Wanted, int]:
    """The different inputs sorted by their tokens, what is wanted after them, and how many contexts were cut."""
    inputs, cut = [], 0
    for context, continuation in requests:
        if len(continuation) > limit:
            raise UserError(f"a continuation has {len(continuation)} tokens and the model takes {limit}; leave it out")
        whole = np.concatenate([np.asarray(context), np.asarray(continuation)]).astype(">u4")
        cut += len(whole) > limit + 1
        inputs.append(whole[-(limit + 1) :][:-1].tobytes())  # big-endian: sorted as bytes is sorted by tokens
    different = sorted(set(inputs))
    number = {key: at for at, key in enumerate(different)}
    texts = [np.frombuffer(key, dtype=">u4").astype(np.int32) for key in different]
    text = np.array([number[key] for key in inputs], dtype=np.int64)
    sizes = np.array([len(continuation) for _, continuation in requests], dtype=np.int64)
    request = np.repeat(np.arange(len(requests)), sizes)
    within = np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    lengths = np.array([len(key) // 4 for key in inputs], dtype=np.int64)
    place = np.repeat(lengths - sizes, sizes) + within
    token = np.concatenate([np.asarray(continuation, dtype=np.int64) for _, continuation in requests])
    return texts, _Wanted(text[request], place, token, request), cut


def _in_stream(wanted: _Wanted, stream: prefixed.Stream) -> np.ndarray:
    """Where in the stream the token stands that each wanted one follows; int64 (wanted,)."""
    found = np.empty(len(wanted.text), dtype=np.int64)
    where = np.empty(int(stream.places.max()) + 1, dtype=np.int64)
    order = np.argsort(wanted.text, kind="stable")
    bounds = np.searchsorted(wanted.text[order], np.arange(len(stream.shared) + 1))
    for text, shared in enumerate(stream.shared.tolist()):
        start, stop = stream.starts[text : text + 2]
        where[shared : shared + stop - start] = np.arange(start, stop)
        mine = order[bounds[text] : bounds[text + 1]]
        found[mine] = where[wanted.place[mine]]
    return found
