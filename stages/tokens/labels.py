"""From rendered examples to token ids: end-of-text, truncation, and where the loss lies."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from stages.instructions.templates import Segment
from stages.tokens.tokenizer import Tokenizer

IGNORE_INDEX = -100
"""The label that carries no loss (torch.nn.functional.cross_entropy, `ignore_index`)."""


class Examples(NamedTuple):
    """Tokenized examples one after the other, not yet shifted: all but the last are input, all but the first target."""

    tokens: np.ndarray
    """int32 (tokens,); every example ends with end-of-text."""
    in_response: np.ndarray
    """bool (tokens,): whether the token belongs to a response or closes one."""
    offsets: np.ndarray
    """int64 (examples + 1,): where each example begins."""
    truncated: np.ndarray
    """bool (examples,): whether the example lost tokens at its end."""
    kept: np.ndarray
    """int64 (examples,): position of each example among those given; the others left no room for a response."""

    @property
    def lengths(self) -> np.ndarray:
        """Positions that each example takes in a row: one less than its tokens; int64 (examples,)."""
        return np.diff(self.offsets) - 1


def label(examples: Iterable[Sequence[Segment]], tokenizer: Tokenizer, max_seq_len: int) -> Examples:
    """Tokenize rendered examples, each to take at most `max_seq_len` positions.

    End-of-text is appended unless the template's own closing text already is that token. What is too long loses tokens
    from its end, back into a response, and still ends with end-of-text; it is dropped if no response token is left.
    So is what has no token before its end-of-text: there would be nothing to predict it from.
    """
    encoded = tokenizer.encode_examples(examples)
    stops = encoded.offsets[1:][np.diff(encoded.offsets) > 0]
    closed = (encoded.ids[stops - 1] == tokenizer.end_of_text) & encoded.in_response[stops - 1]
    open_ends = stops[~closed]
    tokens = np.insert(encoded.ids, open_ends, tokenizer.end_of_text)
    in_response = np.insert(encoded.in_response, open_ends, True)
    offsets = encoded.offsets + np.searchsorted(open_ends, encoded.offsets, side="right")
    whole = np.diff(offsets)
    sizes, truncated = whole.copy(), whole > max_seq_len + 1
    for at in np.flatnonzero(truncated):
        start, stop = offsets[at], offsets[at + 1]
        sizes[at] = _truncate(tokens[start:stop], in_response[start:stop], max_seq_len, tokenizer.end_of_text)
    sizes[sizes < 2] = 0
    if (sizes < whole).any():
        within = np.arange(len(tokens)) - np.repeat(offsets[:-1], whole)
        left = within < np.repeat(sizes, whole)
        tokens, in_response = tokens[left], in_response[left]
    kept = np.flatnonzero(sizes)
    offsets = np.concatenate([[0], np.cumsum(sizes[kept])])
    return Examples(tokens, in_response, offsets, truncated[kept], kept)


def _truncate(tokens: np.ndarray, in_response: np.ndarray, max_seq_len: int, end_of_text: int) -> int:
    """Close an example in place within `max_seq_len` + 1 tokens; the number of tokens left, 0 if there is no room."""
    responses = np.flatnonzero(in_response[:max_seq_len])
    if not len(responses):
        return 0
    last = int(responses[-1])  # of a response: a later turn that was begun is left out
    if tokens[last] == end_of_text:
        return last + 1
    tokens[last + 1], in_response[last + 1] = end_of_text, True
    return last + 2


def join(parts: Sequence[Examples], sizes: Sequence[int]) -> Examples:
    """Examples of several batches as one; `sizes` are the numbers of examples that were given."""
    given = np.concatenate([[0], np.cumsum(sizes)])
    starts = np.concatenate([[0], np.cumsum([len(part.tokens) for part in parts])])
    return Examples(
        tokens=np.concatenate([part.tokens for part in parts]),
        in_response=np.concatenate([part.in_response for part in parts]),
        offsets=np.concatenate([[0], *(part.offsets[1:] + start for part, start in zip(parts, starts, strict=False))]),
        truncated=np.concatenate([part.truncated for part in parts]),
        kept=np.concatenate([part.kept + start for part, start in zip(parts, given, strict=False)]),
    )
