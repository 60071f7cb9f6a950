"""Likelihoods in a stream of shared beginnings are those of each text read by itself."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedModel

from stages.model import likelihoods, prefixed
from stages.model.checkpoint import load_model
from stages.model.likelihoods import Likelihood, Request, Scorer, limit_of
from stages.model.prefixed import make_stream
from stages.pipeline.errors import StoppedError, UserError
from tests.model.tiny_models import make_tiny

CPU = torch.device("cpu")

REQUESTS = st.lists(
    st.tuples(
        st.integers(0, 2), st.lists(st.integers(3, 5), max_size=6), st.lists(st.integers(3, 5), min_size=1, max_size=4)
    ),
    min_size=1,
    max_size=12,
)
"""Beginning, the rest of a context, continuation; of few tokens, so that much is shared in all ways."""

BEGINNINGS = [[7] * 9, [7] * 9 + [8] * 12, [9]]


def make_requests(count: int = 15, seed: int = 3) -> list[Request]:
    """Questions after three beginnings, with four continuations each."""
    dice = np.random.default_rng(seed)

    def some(low: int, high: int) -> list[int]:
        return [int(token) for token in dice.integers(3, 1000, dice.integers(low, high))]

    beginnings = [some(5, 60) for _ in range(3)]
    contexts = [beginnings[at % 3] + some(1, 20) for at in range(count)]
    return [(context, some(1, 5)) for context in contexts for _ in range(4)]


@torch.no_grad()
def alone(model: Any, requests: Sequence[Request], limit: int = 256) -> list[Likelihood]:
    """By transformers, one request after the other."""
    found = []
    for context, continuation in requests:
        text = [*context, *continuation][-(limit + 1) :]
        wanted = torch.tensor(list(continuation))
        logits = model(input_ids=torch.tensor([text[:-1]])).logits[0, -len(wanted) :].double().log_softmax(-1)
        sums = float(logits.gather(1, wanted[:, None]).sum())
        found.append(Likelihood(sums, bool((logits.argmax(-1) == wanted).all())))
    return found


def assert_equal(found: Sequence[Likelihood], expected: Sequence[Likelihood]) -> None:
    assert np.allclose([a.log_probability for a in found], [b.log_probability for b in expected], atol=1e-4, rtol=0)
    assert [a.greedy for a in found] == [b.greedy for b in expected]


@pytest.fixture(scope="module", params=["tiny_llama", "tiny_gpt2"])
def both_ways(request: pytest.FixtureRequest) -> tuple[Scorer, PreTrainedModel]:
    """A scorer, and the same model by itself."""
    folder: Path = request.getfixturevalue(request.param)
    model = load_model(folder, torch.float32, CPU)
    model.eval()
    return Scorer(folder, torch.float32, CPU), model


@pytest.mark.parametrize(("rows", "together"), [(1024, 256), (64, 1), (7, 16)])
def test_equal_to_each_text_alone(
    both_ways: tuple[Scorer, PreTrainedModel], rows: int, together: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(likelihoods, "ROWS", rows)
    monkeypatch.setattr(prefixed, "TOGETHER", together)
    scorer, model = both_ways
    requests = make_requests()
    assert_equal(scorer.score(requests), alone(model, requests))


@settings(max_examples=25, deadline=None)
@given(REQUESTS, st.integers(1, 40))
def test_beginnings_may_be_shared_in_any_way(
    both_ways: tuple[Scorer, PreTrainedModel], drawn: list[tuple[int, list[int], list[int]]], rows: int
) -> None:
    scorer, model = both_ways
    requests = [(BEGINNINGS[at] + rest, continuation) for at, rest, continuation in drawn]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(likelihoods, "ROWS", rows)
        assert_equal(scorer.score(requests), alone(model, requests))


def test_what_greedy_decoding_writes_is_greedy(both_ways: tuple[Scorer, PreTrainedModel]) -> None:
    scorer, model = both_ways
    text = [5, 6, 7]
    with torch.no_grad():
        for _ in range(4):
            text.append(int(model(input_ids=torch.tensor([text])).logits[0, -1].argmax()))
    other = text[5] + 1
    found = scorer.score([(text[:3], text[3:]), (text[:3], [*text[3:5], other])])
    assert [one.greedy for one in found] == [True, False]


def test_what_is_shared_is_read_once() -> None:
    texts = sorted([1, 2, 3, *rest] for rest in ([4, 5], [4, 6, 7], [8], [4]))
    stream = make_stream([np.array(text) for text in texts])
    assert stream.tokens.tolist() == [1, 2, 3, 4, 5, 6, 7, 8]
    assert stream.places.tolist() == [0, 1, 2, 3, 4, 4, 5, 3]


def test_one_pass_for_all_answers_of_a_token(tiny_llama: Path) -> None:
    scorer, passes = Scorer(tiny_llama, torch.float32, CPU), []
    context = list(range(3, 60))
    found = scorer.score([(context, [token]) for token in range(3, 1000)], on_step=lambda: passes.append(1))
    assert len(passes) == 1
    assert sum(np.exp(one.log_probability) for one in found) < 1
    assert sum(one.greedy for one in found) == 1


def test_too_long_a_context_loses_its_beginning(
    both_ways: tuple[Scorer, PreTrainedModel], capfd: pytest.CaptureFixture[str]
) -> None:
    scorer, model = both_ways
    long = np.random.default_rng(1).integers(3, 1000, 400).tolist()
    requests: list[Request] = [(long, [5, 6]), (long[:254], [5, 6]), (long[:255], [5, 6]), (long[:256], [5, 6])]
    assert_equal(scorer.score(requests), alone(model, requests))
    assert "2 of 4 contexts are cut at their beginning to 256 tokens" in capfd.readouterr().err
    with pytest.raises(UserError, match="a continuation has 300 tokens and the model takes 256"):
        scorer.score([([5], long[:300])])


def test_it_stops_between_passes(tiny_llama: Path) -> None:
    def on_step() -> None:
        raise StoppedError("stopped")

    scorer, requests = Scorer(tiny_llama, torch.float32, CPU), make_requests(4)
    with pytest.raises(StoppedError):
        scorer.score(requests, on_step=on_step)
    assert_equal(scorer.score(requests), alone(load_model(tiny_llama, torch.float32, CPU), requests))


def test_nothing_is_certain(tiny_llama: Path) -> None:
    scorer = Scorer(tiny_llama, torch.float32, CPU)
    assert scorer.score([]) == []
    found = scorer.score([([5], []), ([5], [6])])
    assert found == [Likelihood(0.0, True), *scorer.score([([5], [6])])]


@pytest.mark.parametrize(
    ("kind", "changes", "reason"),
    [("mistral", {"sliding_window": 8}, "window of 8"), ("gemma2", {"attn_logit_softcapping": 5.0}, "softcap")],
)
def test_other_attention_is_left_to_transformers(
    kind: str, changes: dict[str, Any], reason: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    make_tiny(kind, **changes).save_pretrained(tmp_path)
    model = load_model(tmp_path, torch.float32, CPU, attention="eager").eval()
    requests = [*make_requests(6), ([5, 6, 7], [8]), ([5, 6, 7, 8], [9])]
    assert_equal(Scorer(tmp_path, torch.float32, CPU).score(requests), alone(model, requests))
    assert reason in capfd.readouterr().err


def test_bfloat16_is_near_and_the_same_every_time(tiny_llama: Path) -> None:
    requests = make_requests()
    scorer = Scorer(tiny_llama, torch.bfloat16, CPU)
    found = scorer.score(requests)
    assert scorer.score(requests) == found
    expected = alone(load_model(tiny_llama, torch.float32, CPU), requests)
    assert np.abs(np.subtract([a[0] for a in found], [b[0] for b in expected])).max() < 0.05


def test_limit_is_that_of_the_config(tiny_gpt2: Path) -> None:
    assert limit_of(tiny_gpt2) == 256
