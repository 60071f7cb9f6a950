"""From a rendered example to inputs and labels: end-of-text, shift by one, truncation, and where the loss lies."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from stages.instructions.templates import Segment
from stages.tokens.tokenizer import Tokenizer

IGNORE_INDEX = -100
"""The label that carries no loss (torch.nn.functional.cross_entropy, `ignore_index`)."""


class Example(NamedTuple):
    """One example; all arrays (time,), position t predicting the token after `input_ids[t]`."""

    input_ids: np.ndarray
    """int32: every token but the last."""
    next_ids: np.ndarray
    """int32: every token but the first, so the shifted targets; the last is end-of-text."""
    in_response: np.ndarray
    """bool: whether the target belongs to a response or closes one."""
    truncated: bool


def label(segments: Sequence[Segment], tokenizer: Tokenizer, max_seq_len: int) -> Example | None:
    """Tokenize one rendered example and shift it by one, to at most `max_seq_len` positions.

    End-of-text is appended unless the template's own closing text already is that token. What is too long loses tokens
    from the end of the response but keeps end-of-text; None if not one response token would be left.
    """
    split = next(i for i, segment in enumerate(segments) if segment.role == "response")
    prompt = tokenizer.encode_segments(segments[:split])
    response = tokenizer.encode_segments(segments[split:])
    if response[-1:] != [tokenizer.end_of_text]:
        response.append(tokenizer.end_of_text)
    room = max_seq_len + 1 - len(prompt)
    if room < 2:
        return None
    truncated = len(response) > room
    if truncated:
        response = [*response[: room - 1], tokenizer.end_of_text]
    tokens = np.array(prompt + response, dtype=np.int32)
    in_response = np.arange(1, len(tokens)) >= len(prompt)
    return Example(tokens[:-1], tokens[1:], in_response, truncated)
