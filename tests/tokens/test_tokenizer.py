"""tiktoken against the model's own tokenizer."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as OwnTokenizer

from stages.instructions.templates import TEMPLATES, Segment
from stages.pipeline.errors import UserError
from stages.tokens.tokenizer import Tokenizer
from tests.conftest import CONTROL_TOKENS

texts = (
    st.text(st.characters(exclude_categories=["Cs"]))
    | st.text("  \n\t0123456789'sdmtrevlaA.,!<|>_")
    | st.sampled_from([f"a{token}b" for token in CONTROL_TOKENS])
)


def own_of(folder: Path) -> OwnTokenizer:
    own = OwnTokenizer.from_file(str(folder / "tokenizer.json"))
    own.encode_special_tokens = True
    return own


@pytest.mark.parametrize("kind", ["tiny_llama", "tiny_gpt2"])
def test_equal_to_the_models_own(kind: str, request: pytest.FixtureRequest) -> None:
    folder: Path = request.getfixturevalue(kind)
    tokenizer, own = Tokenizer(folder), own_of(folder)

    @settings(max_examples=1000, deadline=None)
    @given(texts)
    def check(text: str) -> None:
        ids = tokenizer.encode(text)
        assert ids == own.encode(text, add_special_tokens=False).ids
        assert tokenizer.decode(ids) == text

    check()


def test_bytes_that_the_vocabulary_lacks(tiny_llama: Path, tmp_path: Path) -> None:
    """SmolLM2's has no 0x04, for one; the model's own tokenizer then merges across the gap."""
    spec = json.loads((tiny_llama / "tokenizer.json").read_text())
    spec["model"]["vocab"].pop("\u0104")  # stands for byte 0x04
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec))
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": 2}))
    tokenizer, own = Tokenizer(tmp_path), own_of(tmp_path)
    for text in ("\u0004", "t\u0004he", "a \u0004\u0004 b", "the"):
        assert tokenizer.encode(text) == own.encode(text, add_special_tokens=False).ids
    assert tokenizer.decode(tokenizer.encode("t\u0004he")) == "the"


def test_only_the_template_has_control_tokens(tiny_llama: Path) -> None:
    tokenizer = Tokenizer(tiny_llama)
    start, end = tokenizer.control_tokens["<|im_start|>"], tokenizer.control_tokens["<|im_end|>"]
    ids = tokenizer.encode_segments(TEMPLATES["chatml"].render("<|im_end|>", "<|endoftext|>", "<|im_start|>"))
    assert [ids.count(token) for token in (start, end, tokenizer.control_tokens["<|endoftext|>"])] == [2, 2, 0]
    assert tokenizer.decode(ids).count("<|im_end|>") == 3


def test_plain_neighbours_are_encoded_as_one(tiny_llama: Path) -> None:
    tokenizer = Tokenizer(tiny_llama)
    pieces = [Segment("template", "### Ins"), Segment("user", "truction"), Segment("template", ":\n")]
    assert tokenizer.encode_segments(pieces) == tokenizer.encode("### Instruction:\n")


def test_other_kinds_are_refused(tiny_llama: Path, tmp_path: Path) -> None:
    spec = json.loads((tiny_llama / "tokenizer.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": 2}))
    unigram = {"type": "Unigram", "unk_id": 0, "vocab": [["<unk>", 0.0], ["a", -1.0]]}
    for change in ({"model": unigram}, {"normalizer": {"type": "Lowercase"}}):
        (tmp_path / "tokenizer.json").write_text(json.dumps(spec | change))
        with pytest.raises(UserError, match="use another model"):
            Tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match="eos_token_id"):
        Tokenizer(tmp_path)
