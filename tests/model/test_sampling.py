"""The next token: held against transformers' own warpers, and against the frequencies that it should have."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.generation.logits_process import (
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from stages.model.decoding import Decoding
from stages.model.sampling import choose, draws_of, seed_of

VOCABULARY = 23


def logits_of(seed: int, rows: int = 4) -> torch.Tensor:
    return torch.randn(rows, VOCABULARY, generator=torch.Generator().manual_seed(seed)) * 3


def allowed(logits: torch.Tensor, seen: torch.Tensor, how: Decoding) -> torch.Tensor:
    """Probabilities as transformers' `generate` would draw from."""
    scores: torch.Tensor = RepetitionPenaltyLogitsProcessor(how.repetition_penalty)(seen, logits.clone())
    scores = TemperatureLogitsWarper(how.temperature)(seen, scores)
    if how.top_k:
        scores = TopKLogitsWarper(how.top_k)(seen, scores)
    if how.top_p < 1:
        scores = TopPLogitsWarper(how.top_p)(seen, scores)
    return scores.softmax(-1)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 10**6),
    st.floats(0.2, 3.0),
    st.integers(0, VOCABULARY + 5),
    st.sampled_from([1.0, 0.97, 0.6, 0.01]),
    st.sampled_from([1.0, 1.3, 0.8]),
)
def test_draws_have_the_probabilities_of_transformers(
    seed: int, temperature: float, top_k: int, top_p: float, penalty: float
) -> None:
    """A fine grid of draws falls on each token as often as transformers makes it likely, and on no other token."""
    how = Decoding(1, temperature, top_k, top_p, penalty)
    logits = logits_of(seed, 1)
    seen = torch.randint(0, VOCABULARY, (1, 6), generator=torch.Generator().manual_seed(seed + 1))
    grid = 4000
    draws = (torch.arange(grid, dtype=torch.float64) + 0.5) / grid
    chosen = choose(logits.expand(grid, -1), seen.expand(grid, -1), draws, how)
    shares = torch.bincount(chosen, minlength=VOCABULARY) / grid
    expected = allowed(logits, seen, how)[0]
    assert torch.allclose(shares, expected, atol=2e-3)
    assert not shares[expected == 0].any()


def test_greedy_is_the_argmax_and_heeds_the_penalty() -> None:
    logits = torch.tensor([[1.0, 3.0, 2.9], [-1.0, -0.5, -0.6]])
    seen, draws = torch.tensor([[1], [1]]), torch.zeros(2, dtype=torch.float64)
    assert choose(logits, seen, draws, Decoding(1)).tolist() == [1, 1]
    assert choose(logits, seen, draws, Decoding(1, repetition_penalty=1.5)).tolist() == [2, 2]


def test_a_token_that_came_twice_is_penalized_once() -> None:
    """3 / 1.4 is above 2.1, and 3 / 1.4 / 1.4 would be below."""
    how = Decoding(1, repetition_penalty=1.4)
    assert (
        int(choose(torch.tensor([[3.0, 2.1]]), torch.tensor([[0, 0]]), torch.zeros(1, dtype=torch.float64), how)) == 0
    )


@pytest.mark.parametrize("how", [Decoding(1, 1.0), Decoding(1, 1.0, top_k=5), Decoding(1, 1.0, top_p=0.9)])
def test_the_ends_of_the_range_of_draws_are_tokens_too(how: Decoding) -> None:
    logits = logits_of(3, 2)
    ends = torch.tensor([0.0, np.nextafter(1.0, 0.0)], dtype=torch.float64)
    for token, row in zip(
        choose(logits, torch.zeros(2, 1, dtype=torch.int64), ends, how).tolist(), logits, strict=True
    ):
        assert 0 <= token < VOCABULARY
        assert row[token].isfinite()


def test_seeds_follow_content() -> None:
    assert seed_of(1, [5, 6], 0) == seed_of(1, (5, 6), 0)
    assert len({seed_of(1, [5, 6], 0), seed_of(2, [5, 6], 0), seed_of(1, [5, 6], 1), seed_of(1, [56], 0)}) == 4
    assert draws_of(7, 10)[:4].tolist() == draws_of(7, 4).tolist()
    assert ((draws_of(7, 1000) >= 0) & (draws_of(7, 1000) < 1)).all()
