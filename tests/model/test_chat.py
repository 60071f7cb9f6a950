"""A talk in the terminal: what it shows is what the model answers to the template's prompt."""

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from stages.instructions.instruction import Turn
from stages.instructions.templates import TEMPLATES
from stages.model.chat import Chat, talk
from stages.model.checkpoint import load_model
from stages.model.decoding import Completion, Decoding, Job, complete
from stages.pipeline.errors import UserError
from stages.tokens.tokenizer import Tokenizer

CPU = torch.device("cpu")
HOW = Decoding(12)


@pytest.fixture
def folders(tiny_llama: Path, tmp_path: Path) -> dict[str, Path]:
    """The tiny model as a checkpoint trained in ChatML, and as the base model."""
    return {"fine-tuned": marked(tiny_llama, tmp_path, "chatml"), "base": tiny_llama}


def marked(model: Path, folder: Path, name: str, hash: str | None = None) -> Path:
    for file in model.iterdir():
        (folder / file.name).symlink_to(file)
    template = TEMPLATES[name]
    mark = {"name": name, "hash": hash or template.hash, "end": template.end}
    (folder / "onset.json").write_text(json.dumps({"template": mark}))
    return folder


def make_chat(folders: dict[str, Path], how: Decoding = HOW) -> Chat:
    return Chat(folders, Path("templates"), how, 1, torch.float32, CPU)


def expected_answer(model: Path, message: str, turns: list[Turn], template: str = "chatml", **how: Any) -> str:
    tokenizer = Tokenizer(model)
    segments = TEMPLATES[template].render(message, history=turns)
    last = max(at for at, segment in enumerate(segments) if segment.role == "response")
    done: dict[int, Completion] = {}
    job = Job(tokenizer.encode_segments(segments[:last]))
    loaded = load_model(model, torch.float32, CPU)
    complete(loaded, [job], ends=[2], how=HOW, batch_size=1, on_answer=done.__setitem__)
    text = tokenizer.decode(done[0].token_ids).lstrip()
    return text.removesuffix(TEMPLATES[template].end) if TEMPLATES[template].end else text


def test_a_talk(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    lines = ["Hello.", "/base", "And now?", "/reset", "/base", "Hello.", "/nonsense", "", "/quit", "never read"]
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(lines) + "\n"))
    talk(make_chat(folders))
    model = folders["base"]
    first = expected_answer(model, "Hello.", [])
    second = expected_answer(model, "And now?", [Turn("Hello.", first)])
    shown = capsys.readouterr().out
    said = [f"fine-tuned> {first}\n", f"base> {first}\n", f"fine-tuned> {second}\n", "(begun anew)\n"]
    said += ["(say something first)\n", f"fine-tuned> {first}\n", "(/base: "]
    at = 0
    for part in said:
        assert part in shown[at:], (part, shown)
        at = shown.index(part, at) + len(part)
    assert "template chatml" in shown
    assert "never read" not in shown


def test_the_end_of_input_ends_it(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    talk(make_chat(folders))


def test_a_template_for_one_turn_takes_each_message_by_itself(tiny_llama: Path, tmp_path: Path) -> None:
    chat = make_chat({"fine-tuned": marked(tiny_llama, tmp_path, "alpaca"), "base": tiny_llama})
    alone = expected_answer(tiny_llama, "And now?", [], "alpaca")
    "".join(chat.say("Hello."))
    assert "".join(chat.say("And now?")) == alone


def test_sampling_follows_the_seed(folders: dict[str, Path]) -> None:
    how = Decoding(12, temperature=1.5)
    answers = {"".join(make_chat(folders, how).say("Hello.")) for _ in range(2)}
    assert len(answers) == 1
    assert answers != {expected_answer(folders["base"], "Hello.", [])}


def test_pieces_never_hold_half_a_character_or_half_a_closing_text(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    chat = make_chat(folders)
    tokens = Tokenizer(folders["base"]).encode("  na\u00efve \U0001f600 <|im_x <|im_end|>")
    monkeypatch.setattr(chat, "_tokens", lambda name, prompt: (tokens[: at + 1] for at in range(len(tokens))))
    pieces = list(chat.answer("base", "Hi", []))
    assert "".join(pieces) == "na\u00efve \U0001f600 <|im_x "
    assert not any("\ufffd" in piece for piece in pieces)


def test_another_text_of_the_template_is_an_error(tiny_llama: Path, tmp_path: Path) -> None:
    folder = marked(tiny_llama, tmp_path, "chatml", hash="0" * 16)
    with pytest.raises(UserError, match="trained with another text of template chatml"):
        make_chat({"fine-tuned": folder, "base": tiny_llama})
