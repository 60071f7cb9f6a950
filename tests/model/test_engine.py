"""Continuous batching gives what transformers' `generate` gives, and the same bytes in whatever company."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma2Config, MistralConfig

from stages.model import engine as engine_module
from stages.model.checkpoint import load_model
from stages.model.decoding import NO_STOPS, Completion, Decoding, Job, Stops, complete, end_tokens
from stages.model.engine import TILE, Engine
from stages.model.prepacked import can_prepack, prepack
from stages.model.sampling import seed_of
from stages.model.slots import Slots, UnsupportedModelError, bytes_per_token

CPU = torch.device("cpu")
SAMPLING = Decoding(12, temperature=1.3, top_k=50, top_p=0.95, repetition_penalty=1.1)


def make_jobs(count: int = 30, longest: int = 40, seed: int = 5) -> list[Job]:
    dice = np.random.default_rng(seed)
    prompts = [dice.integers(3, 1000, dice.integers(1, longest)).tolist() for _ in range(count)]
    return [Job(prompt, seed_of(1, prompt, 0)) for prompt in prompts]


def by_engine(
    model: Any,
    jobs: Sequence[Job],
    how: Decoding,
    batch_size: int = 8,
    ends: Sequence[int] = (2,),
    stops: Stops = NO_STOPS,
) -> list[Completion]:
    done: dict[int, Completion] = {}

    def on_answer(at: int, completion: Completion) -> None:
        assert at not in done, "answered twice"
        done[at] = completion

    room = max(len(job.prompt) for job in jobs) + how.max_new_tokens
    engine = Engine(model, how, ends, batch_size=batch_size, room=room, stops=stops)
    engine.run(jobs, on_answer, lambda: None)
    return [done[at] for at in range(len(jobs))]


def by_transformers(
    model: Any, jobs: Sequence[Job], how: Decoding, batch_size: int = 4, stops: Stops = NO_STOPS
) -> list[Completion]:
    done: dict[int, Completion] = {}
    model.set_attn_implementation("sdpa")
    complete(model, jobs, ends=[2], how=how, batch_size=batch_size, on_answer=done.__setitem__, stops=stops)
    return [done[at] for at in range(len(jobs))]


@pytest.mark.parametrize("kind", ["tiny_llama", "tiny_gpt2"])
@pytest.mark.parametrize("penalty", [1.0, 1.4])
def test_greedy_is_that_of_transformers(kind: str, penalty: float, request: pytest.FixtureRequest) -> None:
    """220 prompts, token for token."""
    model = load_model(request.getfixturevalue(kind), torch.float32, CPU)
    how, jobs = Decoding(24, repetition_penalty=penalty), make_jobs(220)
    ours = by_engine(model, jobs, how, batch_size=50)
    assert ours == by_transformers(model, jobs, how, batch_size=44)
    assert len({tuple(answer.token_ids) for answer in ours}) > 50


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("how", [Decoding(12), SAMPLING], ids=["greedy", "sampling"])
def test_company_and_order_change_nothing(tiny_llama: Path, dtype: torch.dtype, how: Decoding) -> None:
    model = load_model(tiny_llama, dtype, CPU)
    if can_prepack(dtype, CPU):
        prepack(model, TILE)
    jobs = make_jobs()
    together = by_engine(model, jobs, how)
    for size in (1, 3, 64, 100):
        assert by_engine(model, jobs, how, batch_size=size) == together
    assert by_engine(model, jobs[::-1], how)[::-1] == together
    assert by_engine(model, jobs[7:11], how) == together[7:11]


def test_sampling_follows_its_seed(tiny_llama: Path) -> None:
    model = load_model(tiny_llama, torch.float32, CPU)
    prompt = make_jobs(1)[0].prompt
    several = [Job(prompt, seed_of(1, prompt, sample)) for sample in range(6)]
    answers = by_engine(model, several, SAMPLING)
    assert len({tuple(answer.token_ids) for answer in answers}) > 3
    assert by_engine(model, several, SAMPLING) == answers
    others = [Job(prompt, seed_of(2, prompt, sample)) for sample in range(6)]
    assert by_engine(model, others, SAMPLING) != answers


def test_end_of_text_stops_at_once_and_later(tiny_llama: Path) -> None:
    model = load_model(tiny_llama, torch.float32, CPU)
    jobs = make_jobs()
    free = by_engine(model, jobs, Decoding(12), ends=[])
    first, fourth = free[0].token_ids[0], free[1].token_ids[3]
    stopped = by_engine(model, jobs, Decoding(12), ends=[first, fourth])
    assert stopped[0] == ([], "stop")
    for whole, cut in zip(free, stopped, strict=True):
        at = next((i for i, token in enumerate(whole.token_ids) if token in (first, fourth)), None)
        assert cut == (whole.token_ids[:at], "length" if at is None else "stop")


@pytest.mark.parametrize("kind", ["tiny_llama", "tiny_gpt2"])
def test_texts_stop_an_answer_where_they_are_complete(kind: str, request: pytest.FixtureRequest) -> None:
    """Tokens as text: their numbers between commas. A text of several tokens, of part of one, and one across two."""
    model = load_model(request.getfixturevalue(kind), torch.float32, CPU)
    jobs = make_jobs(12)
    free = by_engine(model, jobs, Decoding(12), ends=[])
    first, second = free[0].token_ids, free[1].token_ids
    texts = (f"{first[2]},{first[3]},", f",{str(second[1])[:2]}", f"{free[2].token_ids[0]},")
    stops = Stops(texts, lambda tokens: "".join(f"{token}," for token in tokens))
    expected = []
    for answer in free:
        lengths = [n for n in range(1, 13) if any(text in stops.decode(answer.token_ids[:n]) for text in texts)]
        expected.append(Completion(answer.token_ids[: min(lengths, default=12)], "stop" if lengths else "length"))
    assert {len(answer.token_ids) for answer in expected[:3]} <= {1, 2, 3, 4}
    for size in (3, 16):
        assert by_engine(model, jobs, Decoding(12), size, ends=[], stops=stops) == expected
    assert by_transformers(model, jobs, Decoding(12), stops=stops) == expected


def test_prompts_longer_than_a_row_are_read_alone(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "ROWS", 48)
    model = load_model(tiny_llama, torch.float32, CPU)
    jobs = [*make_jobs(12), *make_jobs(3, longest=200, seed=9), *make_jobs(5, seed=3)]
    assert by_engine(model, jobs, Decoding(10)) == by_transformers(model, jobs, Decoding(10))


def test_answers_stop_where_the_model_has_no_more_positions(tiny_gpt2: Path) -> None:
    model = load_model(tiny_gpt2, torch.float32, CPU)
    job = Job(list(range(3, 253)))
    done: dict[int, Completion] = {}
    Engine(model, Decoding(12), [], batch_size=1, room=256).run([job], done.__setitem__, lambda: None)
    assert len(done[0].token_ids) == 6
    assert done[0].finish_reason == "length"


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (MistralConfig(sliding_window=16), "window of 16"),
        (Gemma2Config(sliding_window=4096, attn_logit_softcapping=50.0, head_dim=8), "softcap"),
    ],
    ids=["window", "softcap"],
)
def test_attention_of_another_kind_is_refused_and_not_guessed(config: Any, reason: str) -> None:
    sizes = {"vocab_size": 1000, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 4, "num_key_value_heads": 2}
    for name, value in sizes.items():
        setattr(config, name, value)
    model = AutoModelForCausalLM.from_config(config)
    with pytest.raises(UnsupportedModelError, match=reason):
        by_engine(model, make_jobs(4), Decoding(5))


def test_memory_of_a_token_is_what_slots_take(tiny_llama: Path) -> None:
    model = load_model(tiny_llama, torch.float32, CPU)
    engine = Engine(model, Decoding(4), [], batch_size=3, room=63)
    engine.run(make_jobs(2), lambda at, completion: None, lambda: None)
    slots: Slots = engine._slots
    held = sum(x.numel() * x.element_size() for x in [*slots._keys.values(), *slots._values.values()])
    assert held == bytes_per_token(model.config, torch.float32) * slots.length * slots.count


def test_models_end_tokens_count(tiny_llama: Path) -> None:
    model = load_model(tiny_llama, torch.float32, CPU)
    assert end_tokens(model, 7) == {2, 7}
