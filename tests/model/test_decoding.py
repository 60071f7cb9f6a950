"""Answers in batches are the answers one by one."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stages.model.checkpoint import load_model
from stages.model.decoding import Completion, complete

GREEDY: dict[str, Any] = {"max_new_tokens": 12, "temperature": 0.0, "top_p": 1.0, "seed": 0, "end_of_text": 2}


def prompts() -> list[list[int]]:
    dice = np.random.default_rng(5)
    return [dice.integers(3, 1000, dice.integers(1, 40)).tolist() for _ in range(9)]


def completed(folder: Path, batch_size: int, **changes: Any) -> list[Completion]:
    model = load_model(folder, torch.float32, torch.device("cpu"))
    heard: list[int] = []
    done = complete(model, prompts(), batch_size=batch_size, on_batch=heard.append, **(GREEDY | changes))
    assert sum(heard) == len(prompts())
    return done


@pytest.mark.parametrize("kind", ["tiny_llama", "tiny_gpt2"])
def test_greedy_is_the_argmax_without_cache_or_padding(kind: str, request: pytest.FixtureRequest) -> None:
    folder: Path = request.getfixturevalue(kind)
    model = load_model(folder, torch.float32, torch.device("cpu"))
    together = completed(folder, batch_size=4)
    assert together == completed(folder, batch_size=1)
    for prompt, completion in zip(prompts(), together, strict=True):
        tokens = list(prompt)
        for _ in range(GREEDY["max_new_tokens"]):
            with torch.no_grad():
                tokens.append(int(model(input_ids=torch.tensor([tokens])).logits[0, -1].argmax()))
            if tokens[-1] == 2:
                break
        expected = tokens[len(prompt) :]
        stopped = expected[-1] == 2
        assert completion == (expected[:-1] if stopped else expected, "stop" if stopped else "length")


def test_end_of_text_stops(tiny_llama: Path) -> None:
    first = completed(tiny_llama, batch_size=4)[0].token_ids[3]
    for completion in completed(tiny_llama, batch_size=4, end_of_text=first)[:1]:
        assert completion.finish_reason == "stop"
        assert first not in completion.token_ids


def test_sampling_follows_its_seed(tiny_llama: Path) -> None:
    draws = [completed(tiny_llama, 4, temperature=1.0, top_p=0.9, seed=seed) for seed in (1, 1, 2)]
    assert draws[0] == draws[1] != draws[2]
