"""The next token from logits: greedy, or a draw from what temperature, top-k, top-p and repetition penalty leave."""

import hashlib
from collections.abc import Sequence

import numpy as np
import torch

from stages.model.decoding import Decoding


def seed_of(seed: int, prompt: Sequence[int], sample: int) -> int:
    """The seed of one answer: by content, so that neither order nor company of the prompts changes a draw."""
    digest = hashlib.sha256(f"{seed} {sample} {list(prompt)}".encode()).digest()
    return int.from_bytes(digest[:8], "big")


def draws_of(seed: int, count: int) -> np.ndarray:
    """What decides each token of one answer: float64 (count,), uniform in [0, 1)."""
    return np.random.Generator(np.random.PCG64(seed)).random(count)


def choose(logits: torch.Tensor, seen: torch.Tensor, draws: torch.Tensor, how: Decoding) -> torch.Tensor:
    """The next token of each answer, int64 (batch,).

    `logits` is (batch, vocabulary), `seen` int64 (batch, time): prompt and answer so far, filled up with tokens of the
    same row; `draws` float64 (batch,). The order is transformers': repetition penalty (arXiv 1909.05858), temperature,
    top-k (arXiv 1805.04833), top-p (arXiv 1904.09751).
    """
    if how.repetition_penalty != 1:
        logits = logits.float()
        found = logits.gather(1, seen)
        penalized = torch.where(found < 0, found * how.repetition_penalty, found / how.repetition_penalty)
        logits = logits.scatter(1, seen, penalized)
    if how.temperature == 0:
        return logits.max(-1).indices  # the first of equal ones, as argmax; in bfloat16 it takes a fifth of the time
    logits = logits.float() / how.temperature
    if how.top_k or how.top_p < 1:
        logits, tokens = logits.topk(min(how.top_k or logits.shape[1], logits.shape[1]), dim=1)
        probabilities = logits.softmax(-1).double()
        before = probabilities.cumsum(-1) - probabilities
        probabilities = probabilities.masked_fill(before >= how.top_p, 0.0)
        return tokens.gather(1, _draw(probabilities, draws)[:, None])[:, 0]
    return _draw(logits.softmax(-1).double(), draws)


def _draw(probabilities: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
    """Where each draw falls in the cumulated weights, which need not add up to 1."""
    mass = probabilities.cumsum(-1)
    at = torch.searchsorted(mass, (draws * mass[:, -1])[:, None], right=True)[:, 0]
    return at.clamp_max(probabilities.shape[1] - 1)
