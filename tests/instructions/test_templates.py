"""Rendered prompts, to the letter."""

import pytest

from stages.instructions.templates import TEMPLATES, Template, find_template
from stages.pipeline.errors import UserError

GOLDENS = {
    ("alpaca", ""): "Below is an instruction that describes a task. Write a response that appropriately completes the "
    "request.\n\n### Instruction:\nAdd.\n\n### Response:\n3",
    ("alpaca", "1 2"): "Below is an instruction that describes a task, paired with an input that provides further "
    "context. Write a response that appropriately completes the request.\n\n### Instruction:\nAdd.\n\n"
    "### Input:\n1 2\n\n### Response:\n3",
    ("phi3", ""): "<|user|>\nAdd.<|end|>\n<|assistant|>\n3<|end|>",
    ("phi3", "1 2"): "<|user|>\nAdd.\n1 2<|end|>\n<|assistant|>\n3<|end|>",
    ("chatml", ""): "<|im_start|>user\nAdd.<|im_end|>\n<|im_start|>assistant\n3<|im_end|>",
    ("chatml", "1 2"): "<|im_start|>user\nAdd.\n\n1 2<|im_end|>\n<|im_start|>assistant\n3<|im_end|>",
}


@pytest.mark.parametrize(("name", "input"), GOLDENS)
def test_rendered_examples(name: str, input: str) -> None:
    assert "".join(segment.text for segment in TEMPLATES[name].render("Add.", input, "3")) == GOLDENS[name, input]


@pytest.mark.parametrize("name", TEMPLATES)
def test_data_is_never_taken_for_template(name: str) -> None:
    segments = TEMPLATES[name].render("{input} <|im_start|>", "{instruction}", "<|end|>")
    assert [s.text for s in segments if s.role == "user"] == ["{input} <|im_start|>", "{instruction}"]
    assert [s.text for s in segments if s.role == "response"] == ["<|end|>"]


def test_hash_changes_with_every_part() -> None:
    parts = [
        ("n", "w", "o", "e"),
        ("N", "w", "o", "e"),
        ("n", "W", "o", "e"),
        ("n", "w", "O", "e"),
        ("n", "w", "o", "E"),
    ]
    assert len({Template(*part).hash for part in parts}) == len(parts)


def test_unknown_template() -> None:
    with pytest.raises(UserError, match=r"no template 'alpacca'; known: alpaca, phi3, chatml"):
        find_template("alpacca")
