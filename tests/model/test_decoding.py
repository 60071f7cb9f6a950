"""transformers' own `generate`, in batches, gives the answers one by one."""

from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from stages.model.checkpoint import load_model
from stages.model.decoding import Completion, Decoding, Job, complete

GREEDY = Decoding(12)


def jobs() -> list[Job]:
    dice = np.random.default_rng(5)
    return [Job(dice.integers(3, 1000, dice.integers(1, 40)).tolist(), seed) for seed in range(9)]


def completed(
    folder: Path,
    batch_size: int,
    how: Decoding = GREEDY,
    given: Sequence[Job] | None = None,
    ends: Collection[int] = (2,),
) -> list[Completion]:
    model = load_model(folder, torch.float32, torch.device("cpu"))
    done: dict[int, Completion] = {}
    asked = given or jobs()
    complete(model, asked, ends=ends, batch_size=batch_size, how=how, on_answer=done.__setitem__)
    return [done[at] for at in range(len(asked))]


@pytest.mark.parametrize("kind", ["tiny_llama", "tiny_gpt2"])
def test_greedy_is_the_argmax_without_cache_or_padding(kind: str, request: pytest.FixtureRequest) -> None:
    folder: Path = request.getfixturevalue(kind)
    model = load_model(folder, torch.float32, torch.device("cpu"))
    together = completed(folder, batch_size=4)
    assert together == completed(folder, batch_size=1)
    for job, completion in zip(jobs(), together, strict=True):
        tokens = list(job.prompt)
        for _ in range(GREEDY.max_new_tokens):
            with torch.no_grad():
                tokens.append(int(model(input_ids=torch.tensor([tokens])).logits[0, -1].argmax()))
            if tokens[-1] == 2:
                break
        expected = tokens[len(job.prompt) :]
        stopped = expected[-1] == 2
        assert completion == (expected[:-1] if stopped else expected, "stop" if stopped else "length")


def test_end_of_text_stops(tiny_llama: Path) -> None:
    first = completed(tiny_llama, batch_size=4)[0].token_ids[3]
    completion = completed(tiny_llama, batch_size=4, ends=[first])[0]
    assert completion.finish_reason == "stop"
    assert first not in completion.token_ids


def test_each_draw_follows_its_own_seed(tiny_llama: Path) -> None:
    how = Decoding(12, temperature=1.0, top_p=0.9)
    drawn = completed(tiny_llama, 4, how)
    assert completed(tiny_llama, 1, how, jobs()[3:5]) == drawn[3:5]
    assert completed(tiny_llama, 4, how, [job._replace(seed=99) for job in jobs()]) != drawn
