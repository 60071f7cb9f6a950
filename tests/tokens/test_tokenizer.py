"""tiktoken against the model's own tokenizer."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.instructions.templates import TEMPLATES, Segment
from stages.pipeline.errors import UserError
from stages.tokens.tokenizer import Tokenizer
from tests.conftest import CONTROL_TOKENS
from tests.tokens.making import (
    BYTE_LEVEL,
    check_equal,
    check_equal_on_made_strings,
    encode_all,
    make_byte_level,
    own_of,
    shipped_texts,
    without_byte,
    write_tokenizer,
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {kind: make_byte_level(tmp_path_factory.mktemp("tokenizers") / kind, kind) for kind in BYTE_LEVEL}


@pytest.fixture(params=BYTE_LEVEL)
def folder(request: pytest.FixtureRequest, folders: dict[str, Path]) -> Path:
    return folders[request.param]


def test_equal_to_the_models_own(folder: Path) -> None:
    assert Tokenizer(folder).engine == "tiktoken"
    assert check_equal_on_made_strings(folder, examples=900) >= 30_000


def test_equal_on_the_shipped_data(folder: Path) -> None:
    check_equal(Tokenizer(folder), own_of(folder), shipped_texts())


def test_equal_on_every_character(folder: Path) -> None:
    """Each library brings its own tables of Unicode. Planes 2 to 16 are ideographs and private use: some of each."""
    tokenizer, own = Tokenizer(folder), own_of(folder)
    codes = [code for code in (*range(1, 0x20000), *range(0x20000, 0x110000, 97)) if not 0xD800 <= code < 0xE000]
    texts = [
        "".join(f"1{chr(c)}{chr(c)}  {chr(c)}a'{chr(c)}\n" for c in codes[at : at + 64])
        for at in range(0, len(codes), 64)
    ]
    different = [i for i, ids in enumerate(encode_all(own, texts)) if tokenizer.encode(texts[i]) != ids]
    assert [f"from U+{codes[64 * i]:04X}" for i in different] == []


@pytest.mark.parametrize("kind", ["smollm", "llama3"])
@pytest.mark.parametrize("text", [" ", "a", "\n", "7"])
def test_a_million_times_the_same(folders: dict[str, Path], kind: str, text: str) -> None:
    long = text * (1_000_000 // len(text)) + "b"
    tokenizer, own = Tokenizer(folders[kind]), own_of(folders[kind])
    started = time.perf_counter()
    ids = tokenizer.encode(long)
    assert time.perf_counter() - started < 10, "merging pair by pair would take hours"
    assert ids == own.encode(long, add_special_tokens=False).ids


def test_half_a_surrogate_pair_is_a_question_mark(folder: Path) -> None:
    tokenizer = Tokenizer(folder)
    assert tokenizer.encode("a\ud83d b") == tokenizer.encode("a? b")


# ---- what tiktoken cannot do


def test_bytes_that_the_vocabulary_lacks(folders: dict[str, Path], tmp_path: Path) -> None:
    """SmolLM2's has no 0x04, for one; the model's own tokenizer then merges across the gap."""
    without_byte(folders["smollm"], tmp_path, 0x04)
    tokenizer, own = Tokenizer(tmp_path), own_of(tmp_path)
    assert tokenizer.engine == "tiktoken"
    check_equal(tokenizer, own, ["\u0004", "t\u0004he", "a \u0004\u0004 b", "the"])
    assert tokenizer.decode(tokenizer.encode("t\u0004he")) == "the"


def test_only_the_example_that_needs_it_goes_through_the_models_own(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_byte(folders["qwen"], tmp_path, 0x04)
    tokenizer, own = Tokenizer(tmp_path), own_of(tmp_path)
    texts = ["It is red.", "a\0b", "\u2126 is NFC", "a\u0004b", "I <think> so.", "\0-1\0", "<thi", "nk>"]
    slowly: list[str] = []
    monkeypatch.setattr(Tokenizer, "_encode_alone", spied(Tokenizer._encode_alone, slowly))
    check_equal(tokenizer, own, texts)
    odd = {"a\0b", "a\u0004b", "I <think> so.", "\0-1\0"}
    assert set(slowly) == odd


def spied(encode_alone: Any, texts: list[str]) -> Any:
    def wrapper(tokenizer: Tokenizer, pieces: list[str | int]) -> Any:
        texts.append("".join(piece for piece in pieces if isinstance(piece, str)))
        return encode_alone(tokenizer, pieces)

    return wrapper


@pytest.mark.parametrize(
    ("merges", "ignore_merges", "engine"),
    [
        (["a b", "b c", "ab c"], False, "tiktoken"),
        (["b c", "a b", "ab c"], False, "tokenizers"),  # a + bc is no merge, though abc is a token
        (["b c", "a b", "ab c"], True, "tokenizers"),
        (["b c", "a b", "ab c", "a bc"], False, "tiktoken"),
        (["b c", "a b", "c d", "ab cd"], False, "tokenizers"),  # left as a, bc, d
        (["b c", "a b", "c d", "ab cd"], True, "tiktoken"),  # but a token as a piece of its own
        (["b c", "ab c", "bc d", "a bc"], False, "tokenizers"),  # abc has two ranks, and the merge bc + d lies between
    ],
)
def test_merges_that_tiktoken_would_not_follow(
    folders: dict[str, Path], tmp_path: Path, merges: list[str], ignore_merges: bool, engine: str
) -> None:
    own = own_of(folders["gpt2"])
    spec = json.loads(own.to_str())
    tokens = [*CONTROL_TOKENS, *map(chr, range(33, 127)), "ab", "\u0120", *(merge.replace(" ", "") for merge in merges)]
    vocab = {token: at for at, token in enumerate(dict.fromkeys(tokens))}
    write_tokenizer(
        tmp_path, own, model=spec["model"] | {"vocab": vocab, "merges": merges, "ignore_merges": ignore_merges}
    )
    tokenizer, own = Tokenizer(tmp_path), own_of(tmp_path)
    assert tokenizer.engine == engine

    @given(st.lists(st.text("abcdx ", max_size=9), min_size=1, max_size=20))
    @settings(deadline=None)
    def check(texts: list[str]) -> None:
        check_equal(tokenizer, own, texts)

    check()


@pytest.mark.parametrize(
    "change",
    [
        {"normalizer": {"type": "Lowercase"}},
        {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}},
        {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "Punctuation", "behavior": "Contiguous"}]}},
    ],
)
def test_another_way_to_cut_goes_through_the_models_own(
    folders: dict[str, Path], tmp_path: Path, change: dict[str, Any]
) -> None:
    write_tokenizer(tmp_path, own_of(folders["gpt2"]), **change)
    tokenizer = Tokenizer(tmp_path)
    assert tokenizer.engine == "tokenizers"
    check_equal(tokenizer, own_of(tmp_path), shipped_texts()[::10])


# ---- templates and data


def test_only_the_template_has_control_tokens(folder: Path) -> None:
    tokenizer = Tokenizer(folder)
    start, end = tokenizer.control_tokens["<|im_start|>"], tokenizer.control_tokens["<|im_end|>"]
    ids = tokenizer.encode_segments(TEMPLATES["chatml"].render("<|im_end|>", "<|endoftext|>", "<|im_start|>"))
    assert [ids.count(token) for token in (start, end, tokenizer.control_tokens["<|endoftext|>"])] == [2, 2, 0]
    assert tokenizer.decode(ids).count("<|im_end|>") == 3


def test_plain_neighbours_are_encoded_as_one(folder: Path) -> None:
    tokenizer = Tokenizer(folder)
    pieces = [Segment("template", "### Ins"), Segment("user", "truction"), Segment("template", ":\n")]
    assert tokenizer.encode_segments(pieces) == tokenizer.encode("### Instruction:\n")


def test_what_a_tokenizer_file_asks_beside_tokens_is_left_out(folders: dict[str, Path], tmp_path: Path) -> None:
    """Training scripts save their truncation and padding with the tokenizer; transformers overrides both."""
    own = own_of(folders["gpt2"])
    whole = encode_all(own, shipped_texts()[:9])
    own.enable_truncation(8)
    own.enable_padding(length=600)
    write_tokenizer(tmp_path, own, normalizer={"type": "Sequence", "normalizers": []})
    tokenizer = Tokenizer(tmp_path)
    assert [tokenizer.encode(text) for text in shipped_texts()[:9]] == whole


def test_a_folder_without_a_tokenizer(folders: dict[str, Path], tmp_path: Path) -> None:
    write_tokenizer(tmp_path, own_of(folders["gpt2"]))
    (tmp_path / "tokenizer_config.json").unlink()
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match="eos_token_id"):
        Tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match="not a tokenizer"):
        Tokenizer(tmp_path)
