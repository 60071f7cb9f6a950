"""The built-in prompt formats, to the letter."""

import dataclasses
from pathlib import Path

import pytest

from stages.instructions.instruction import Turn
from stages.instructions.templates import TEMPLATES, BuiltInTemplate, NoFormError, Segment
from stages.tokens.labels import label
from stages.tokens.tokenizer import Tokenizer

ALPACA = "Below is an instruction that describes a task"
REQUEST = "Write a response that appropriately completes the request.\n\n### Instruction:\nAdd.\n\n"
HISTORY = (Turn("Hi!", "Hello."), Turn("Well?", "Yes."))

GOLDENS = {
    ("alpaca", "", "", 0): f"{ALPACA}. {REQUEST}### Response:\n3",
    ("alpaca", "1 2", "", 0): f"{ALPACA}, paired with an input that provides further context. {REQUEST}"
    "### Input:\n1 2\n\n### Response:\n3",
    ("phi3", "", "", 0): "<|user|>\nAdd.<|end|>\n<|assistant|>\n3<|end|>",
    ("phi3", "1 2", "", 0): "<|user|>\nAdd.\n1 2<|end|>\n<|assistant|>\n3<|end|>",
    (
        "phi3",
        "1 2",
        "Be brief.",
        2,
    ): "<|system|>\nBe brief.<|end|>\n<|user|>\nHi!<|end|>\n<|assistant|>\nHello.<|end|>\n"
    "<|user|>\nWell?<|end|>\n<|assistant|>\nYes.<|end|>\n<|user|>\nAdd.\n1 2<|end|>\n<|assistant|>\n3<|end|>",
    ("chatml", "", "", 0): "<|im_start|>user\nAdd.<|im_end|>\n<|im_start|>assistant\n3<|im_end|>",
    ("chatml", "1 2", "", 0): "<|im_start|>user\nAdd.\n\n1 2<|im_end|>\n<|im_start|>assistant\n3<|im_end|>",
    ("chatml", "", "Be brief.", 0): "<|im_start|>system\nBe brief.<|im_end|>\n"
    "<|im_start|>user\nAdd.<|im_end|>\n<|im_start|>assistant\n3<|im_end|>",
    ("chatml", "", "", 1): "<|im_start|>user\nHi!<|im_end|>\n<|im_start|>assistant\nHello.<|im_end|>\n"
    "<|im_start|>user\nAdd.<|im_end|>\n<|im_start|>assistant\n3<|im_end|>",
}


@pytest.mark.parametrize(("name", "input", "system", "turns"), GOLDENS)
def test_rendered_examples(name: str, input: str, system: str, turns: int) -> None:
    segments = TEMPLATES[name].render("Add.", input, "3", system=system, history=HISTORY[:turns])
    assert "".join(segment.text for segment in segments) == GOLDENS[name, input, system, turns]


def test_what_stands_where() -> None:
    segments = TEMPLATES["chatml"].render("Add.", "1 2", "3", system="Be brief.", history=HISTORY[:1])
    assert segments == [
        Segment("template", "<|im_start|>system\n"),
        Segment("user", "Be brief."),
        Segment("template", "<|im_end|>\n"),
        Segment("template", "<|im_start|>user\n"),
        Segment("user", "Hi!"),
        Segment("template", "<|im_end|>\n<|im_start|>assistant\n"),
        Segment("response", "Hello."),
        Segment("end", "<|im_end|>"),
        Segment("template", "\n"),
        Segment("template", "<|im_start|>user\n"),
        Segment("user", "Add."),
        Segment("template", "\n\n"),
        Segment("user", "1 2"),
        Segment("template", "<|im_end|>\n<|im_start|>assistant\n"),
        Segment("response", "3"),
        Segment("end", "<|im_end|>"),
    ]


@pytest.mark.parametrize(
    ("system", "history", "reason"),
    [("Be brief.", (), "no form for a system message"), ("", HISTORY, "no form for several turns")],
)
def test_alpaca_has_no_form_for_a_conversation(system: str, history: tuple[Turn, ...], reason: str) -> None:
    with pytest.raises(NoFormError, match=f"^{reason}$"):
        TEMPLATES["alpaca"].render("Add.", "", "3", system=system, history=history)


@pytest.mark.parametrize("name", TEMPLATES)
def test_data_is_never_taken_for_template(name: str) -> None:
    segments = TEMPLATES[name].render("{input} <|im_start|>", "{instruction}", "<|end|> {system}")
    assert [s.text for s in segments if s.role == "user"] == ["{input} <|im_start|>", "{instruction}"]
    assert [s.text for s in segments if s.role == "response"] == ["<|end|> {system}"]


@pytest.mark.parametrize("name", ["phi3", "chatml"])
def test_every_answer_of_a_conversation_has_a_loss_and_nothing_else_has(name: str, tiny_llama: Path) -> None:
    tokenizer, end = Tokenizer(tiny_llama), TEMPLATES[name].end
    segments = TEMPLATES[name].render("Add.", "1 2", "3", system="Be brief.", history=HISTORY)
    examples = label([segments], tokenizer, 10_000)
    last = end if end == "<|im_end|>" else f"{end}<|im_end|>"  # the tiny model's end-of-text
    assert tokenizer.decode(examples.tokens[examples.in_response]) == f"Hello.{end}Yes.{end}3{last}"


def test_the_hash_changes_with_every_part() -> None:
    chatml = TEMPLATES["chatml"]
    fields = [field.name for field in dataclasses.fields(BuiltInTemplate)]
    changed = [dataclasses.replace(chatml, **{name: "another"}) for name in fields]
    no_turns = [dataclasses.replace(chatml, between=None), dataclasses.replace(chatml, between="")]
    hashes = {template.hash for template in [*TEMPLATES.values(), *changed, *no_turns]}
    assert len(hashes) == len(TEMPLATES) + len(changed) + len(no_turns)


def test_the_hash_is_the_same_in_every_process() -> None:
    assert TEMPLATES["chatml"].hash == "f638cb6fbb72ec5f"
