"""Subjects answer in the template of the training, each answer once, and say how likely others are."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from stages.benchmarks.benchmark import Message, Subject
from stages.benchmarks.chats import plain, render
from stages.benchmarks.subject import LocalSubject, both
from stages.instructions.jinja_templates import JinjaTemplate
from stages.instructions.templates import TEMPLATES, Template
from stages.model.answers import Writer
from stages.model.calls import CallStore
from stages.model.decoding import Decoding
from stages.pipeline.errors import StoppedError, UserError
from stages.pipeline.stopping import Stop
from tests.conftest import make_tokenizer
from tests.model.tiny_models import make_tiny

CHAT = [{"role": "user", "content": "Name a colour."}]
TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "One?"},
    {"role": "assistant", "content": "Yes."},
    {"role": "user", "content": "Two?"},
]


@pytest.fixture(scope="module")
def lively(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama that does not write one token over and over."""
    folder = tmp_path_factory.mktemp("models")
    make_tiny("llama").save_pretrained(folder)
    make_tokenizer(folder)
    return folder


def make_subject(folder: Path, store: Path, template: Template | None = None) -> LocalSubject:
    writer = Writer("local", Decoding(1), 8, torch.float32, torch.device("cpu"))
    return LocalSubject("base", folder, template, writer, store=CallStore(store), stop=Stop(), seed=1)


def text_of(template: Template, messages: Sequence[Message]) -> str:
    return "".join(segment.text for segment in render(template, messages))


def test_it_is_a_subject(tiny_llama: Path, tmp_path: Path) -> None:
    subject: Subject = make_subject(tiny_llama, tmp_path / "calls.db", TEMPLATES["phi3"])
    assert (subject.name, subject.template) == ("base", "phi3")
    assert make_subject(tiny_llama, tmp_path / "calls.db").template == "none"


def test_samples_have_seeds_of_their_own(tiny_llama: Path, tmp_path: Path) -> None:
    subject = make_subject(tiny_llama, tmp_path / "calls.db", TEMPLATES["chatml"])
    how: dict[str, Any] = {"max_new_tokens": 8, "temperature": 1.0}
    answers = subject.answer([CHAT, TALK], num_samples=3, **how)
    assert [len(texts) for texts in answers] == [3, 3]
    assert len({text for texts in answers for text in texts}) > 4
    assert subject.answer([TALK], num_samples=2, **how) == [answers[1][:2]]
    assert all(text == text.strip() for texts in answers for text in texts)


def test_what_was_answered_is_kept(tiny_llama: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    found = make_subject(tiny_llama, tmp_path / "calls.db").complete(["One", "Two"], max_new_tokens=4)
    capfd.readouterr()
    again = make_subject(tiny_llama, tmp_path / "calls.db")
    assert again.complete(["Two", "One", ""], max_new_tokens=4)[:2] == found[::-1]
    assert "1 answers written" in capfd.readouterr().err


def test_plain_texts_are_continued_up_to_a_stop(lively: Path, tmp_path: Path) -> None:
    subject = make_subject(lively, tmp_path / "calls.db")
    ((free,),) = subject.complete(["Name a colour."], max_new_tokens=16)
    stop = free[7:10]
    ((cut,),) = subject.complete(["Name a colour."], max_new_tokens=16, stops=[stop, ""])
    assert cut == free[: free.index(stop)]
    assert subject.answer([CHAT], max_new_tokens=16) == [[free.strip()]]


def test_too_long_a_prompt_loses_its_beginning(lively: Path, tmp_path: Path) -> None:
    subject = make_subject(lively, tmp_path / "calls.db")
    long = "one two three " * 200
    tokens = subject.encode(long)[-(256 - 8) :]
    assert subject.complete([long], max_new_tokens=8) == subject.complete(
        [subject.tokenizer.decode(tokens)], max_new_tokens=8
    )


def test_told_to_stop_it_says_how_to_go_on(tiny_llama: Path, tmp_path: Path) -> None:
    subject = make_subject(tiny_llama, tmp_path / "calls.db")
    subject._stop._reason = "SIGTERM"
    with pytest.raises(StoppedError, match=r"benchmark: stopped \(SIGTERM\), 0 of 1 answers"):
        subject.complete(["One"], max_new_tokens=4)
    with pytest.raises(StoppedError, match=r"benchmark: stopped \(SIGTERM\)"):
        subject.score([([5], [6])])


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
def test_every_template_shows_a_talk(template: Template) -> None:
    text = text_of(template, TALK)
    at = [text.index(message["content"]) for message in TALK]
    assert at == sorted(at)
    assert text.endswith(text_of(template, CHAT).split("Name a colour.")[1])


def test_what_a_template_has_no_form_for_is_written_into_one_message() -> None:
    assert "### Instruction:\nBe brief.\n\nUser: One?\n\nAssistant: Yes.\n\nUser: Two?\n\n### Resp" in text_of(
        TEMPLATES["alpaca"], TALK
    )
    no_system = JinjaTemplate(
        "own",
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('none') }}{% endif %}"
        "[{{ m.role }}]{{ m.content | trim }}{% endfor %}",
        {},
        "own.jinja",
    )
    assert text_of(no_system, TALK) == "[user]Be brief.\n\nOne?[assistant]Yes.[user]Two?[assistant]"
    padded = [{"role": "user", "content": " Two?\n"}]
    assert text_of(no_system, padded) == "[user]Two?[assistant]"


def test_a_text_that_no_form_suits_is_an_error() -> None:
    lower = JinjaTemplate("own", "{{ instruction | lower }}: {{ response }}", {}, "own.jinja")
    with pytest.raises(UserError, match=r"template own: .*benchmark\.template: false"):
        render(lower, CHAT)


def test_without_a_template_roles_are_written_out() -> None:
    assert plain(CHAT) == "Name a colour."
    assert plain(TALK) == "System: Be brief.\n\nUser: One?\n\nAssistant: Yes.\n\nUser: Two?\n\nAssistant:"


def test_both_have_the_template_of_the_training(
    tiny_llama: Path, tiny_gpt2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stages.benchmarks.subject.keep_freed_memory", lambda: None)
    checkpoint = tmp_path / "checkpoint"
    checkpoint.mkdir()
    for file in tiny_llama.iterdir():
        (checkpoint / file.name).symlink_to(file)
    how: dict[str, Any] = {"batch_size": 4, "precision": "fp32", "seed": 1}

    def trained_with(hash: str) -> None:
        (checkpoint / "onset.json").write_text(json.dumps({"template": {"name": "phi3", "hash": hash, "end": ""}}))

    trained_with(TEMPLATES["phi3"].hash)
    subjects, marks = both(checkpoint, tiny_gpt2, tmp_path, Stop(), template=True, **how)
    assert [(one.name, one.template) for one in subjects] == [("fine-tuned", "phi3"), ("base", "phi3")]
    assert len(set(marks.values())) == 2
    bare, others = both(checkpoint, tiny_gpt2, tmp_path, Stop(), template=False, **how)
    assert [one.template for one in bare] == ["none", "none"]
    assert others["base"] != marks["base"]
    trained_with("another")
    with pytest.raises(UserError, match="another text of template phi3"):
        both(checkpoint, tiny_gpt2, tmp_path, Stop(), template=True, **how)
