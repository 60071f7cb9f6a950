"""Answers to the same few prompts at every validation, so that one sees a model learn."""

from pathlib import Path
from typing import Any

import pytest
import torch

from stages.instructions.templates import TEMPLATES, Segment
from stages.model import attention, finetuning, gates
from stages.model.finetuning import finetune
from stages.model.parallel import ALONE
from stages.model.samples import answer_samples, choose_samples
from stages.model.state import StateFolder
from stages.model.training import Data
from stages.pipeline.stopping import Stop
from stages.tokens.arrays import TokenArrays, collate
from stages.tokens.labels import label
from stages.tokens.packing import pack
from stages.tokens.tokenizer import Tokenizer
from tests.model.making import CPU, greedy, load, settings

CAPITALS = {"France": "Paris", "Italy": "Rome", "Spain": "Madrid", "Norway": "Oslo", "Japan": "Tokyo"}

LONG_ENOUGH: dict[str, Any] = {"epochs": 60, "learning_rate": 1e-2, "validations_per_epoch": 1, "batch_size": 1}
"""To know five talks by heart."""


def talk(country: str) -> list[Segment]:
    """Two turns, the second of which has the answer."""
    once = TEMPLATES["chatml"].render("Do you know capitals?", "", "I do.")
    return [*once, *TEMPLATES["chatml"].render(f"And that of {country}?", "", f"It is {CAPITALS[country]}.")]


@pytest.fixture
def talks(tiny_llama: Path) -> TokenArrays:
    tokenizer = Tokenizer(tiny_llama)
    made = label(map(talk, CAPITALS), tokenizer, 256)
    row_of = pack(made.lengths, 256)
    assert row_of.max() < len(row_of) - 1, "several a row"
    return collate(made, row_of, list(CAPITALS), end_of_text=tokenizer.end_of_text, mask_instruction=True)


def test_the_first_by_id_are_asked_for_their_last_answer(tiny_llama: Path, talks: TokenArrays) -> None:
    tokenizer = Tokenizer(tiny_llama)
    samples = choose_samples(talks, 3, tokenizer)
    assert [sample.id for sample in samples] == ["France", "Italy", "Japan"]
    for sample in samples:
        asked = talk(sample.id)
        last = max(at for at, segment in enumerate(asked) if segment.role == "response")
        assert sample.prompt == tokenizer.encode_segments(asked[:last])
        assert sample.reference == f"It is {CAPITALS[sample.id]}."
    assert choose_samples(talks, 9, tokenizer)[:3] == samples
    assert len(choose_samples(talks, 9, tokenizer)) == len(CAPITALS)
    assert choose_samples(talks, 0, tokenizer) == []


@pytest.mark.parametrize("training", [True, False])
def test_answers_are_greedy_and_leave_the_model_as_it_was(tiny_llama: Path, talks: TokenArrays, training: bool) -> None:
    tokenizer, model = Tokenizer(tiny_llama), load(tiny_llama).train(training)
    samples = choose_samples(talks, 3, tokenizer)
    answers = answer_samples(model, samples, tokenizer, 6)
    assert answers == answer_samples(model, samples, tokenizer, 6)
    assert model.training == training
    assert model.config._attn_implementation == attention.NAME
    plain = load(tiny_llama)
    plain.set_attn_implementation("eager")
    for sample, answer in zip(samples, answers, strict=True):
        (alone,) = greedy(plain, [sample.prompt], 6, tokenizer.end_of_text)
        assert answer == " ".join(tokenizer.decode(alone).split())


def run(folder: Path, arrays: TokenArrays, state: Path, heard: list[tuple[int, str]], **changes: Any) -> Any:
    """Fine-tune as the stage does; the history."""
    chosen = settings(early_stopping=False, overfit_patience=5, **changes)
    history, _ = finetune(
        chosen,
        Data(arrays, arrays),
        folder,
        torch.float32,
        CPU,
        ALONE,
        StateFolder(state),
        Stop(),
        on_validation=lambda row: None,
        on_samples=lambda step, text: heard.append((step, text)),
    )
    return history


@pytest.fixture
def lightly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without what is for a training that fills the machine: its allocator, and the trial of its speed."""
    monkeypatch.setattr(finetuning, "keep_freed_memory", lambda expected: None)
    monkeypatch.setattr(gates, "matrix_rate", lambda device, dtype: 1e9)


@pytest.mark.usefixtures("lightly")
def test_one_sees_a_model_learn(tiny_llama: Path, talks: TokenArrays, tmp_path: Path) -> None:
    heard: list[tuple[int, str]] = []
    history = run(tiny_llama, talks, tmp_path, heard, sample_prompts=2, sample_tokens=12, **LONG_ENOUGH)
    assert [step for step, _ in heard] == [row.step for row in history.rows]
    first, last = heard[0][1], heard[-1][1]
    assert "ANSWER     It is Paris." not in first
    for country in ("France", "Italy"):
        right = f"It is {CAPITALS[country]}."
        for text in (first, last):
            assert f"And that of {country}?" in text
            assert f"REFERENCE  {right}\n" in text
        assert f"ANSWER     {right}\n" in last
    assert "Japan" not in last


@pytest.mark.usefixtures("lightly")
def test_looking_does_not_change_the_training(tiny_llama: Path, talks: TokenArrays, tmp_path: Path) -> None:
    """Not even one with noise, which has its random numbers from where sampling would have them."""
    heard: list[tuple[int, str]] = []
    seen, unseen = (
        run(tiny_llama, talks, tmp_path / str(count), heard, sample_prompts=count, sample_tokens=4, neftune_alpha=5)
        for count in (2, 0)
    )
    assert len(heard) == len(seen.rows)
    assert seen.rows == unseen.rows
    assert all(torch.equal(weight, unseen.best_weights[name]) for name, weight in seen.best_weights.items())


@pytest.mark.usefixtures("lightly")
def test_answers_end_after_so_many_tokens(tiny_llama: Path, talks: TokenArrays, tmp_path: Path) -> None:
    heard: list[tuple[int, str]] = []
    run(tiny_llama, talks, tmp_path, heard, sample_prompts=1, sample_tokens=2, **LONG_ENOUGH)
    answer = heard[-1][1].split("ANSWER     ")[1].strip()
    assert answer == Tokenizer(tiny_llama).decode(Tokenizer(tiny_llama).encode("It is Paris.")[:2]).strip()
