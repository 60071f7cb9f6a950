"""Tokenizers of every kind, trained on the shipped data, strings that would tell two of them apart, and how to tell."""

import json
from collections.abc import Sequence
from functools import cache
from itertools import accumulate, chain, cycle, pairwise, takewhile
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as OwnTokenizer

from stages.instructions.templates import Segment
from stages.tokens.tokenizer import Tokenizer
from tests.conftest import CONTROL_TOKENS, ROOT, make_tokenizer

# Of meta-llama/Meta-Llama-3-8B and Qwen/Qwen2.5-0.5B, tokenizer.json.
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN = LLAMA3.replace("{1,3}", "")
QWEN_ADDED = ["<think>", "</think>", "<tool_call>"]
OTHER_CONTROL_TOKENS = ["<unk>", "[UNK]", *CONTROL_TOKENS]


@cache
def shipped_rows() -> list[dict[str, str]]:
    return [json.loads(line) for line in (ROOT / "data/raw/instructions.jsonl").open(encoding="utf-8")]


def shipped_texts() -> list[str]:
    return [f"{row['instruction']}\n{row['input']}\n{row['output']}" for row in shipped_rows()]


BYTE_LEVEL = ("gpt2", "smollm", "llama3", "qwen")


def make_byte_level(folder: Path, kind: str) -> Path:
    """Write a byte-level BPE that cuts text as one of BYTE_LEVEL does."""
    if kind in ("gpt2", "smollm"):
        folder.mkdir(parents=True, exist_ok=True)
        make_tokenizer(folder, digits_apart=kind == "smollm")
        (folder / "config.json").write_text(json.dumps({"eos_token_id": 2}))
        return folder
    own = OwnTokenizer(models.BPE(ignore_merges=kind == "llama3"))
    pattern = Regex(LLAMA3 if kind == "llama3" else QWEN)
    own.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(pattern, "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    own.decoder = decoders.ByteLevel()
    if kind == "qwen":
        own.normalizer = normalizers.NFC()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    train(own, trainers.BpeTrainer(vocab_size=1000, special_tokens=CONTROL_TOKENS, initial_alphabet=alphabet))
    if kind == "qwen":  # Qwen3's are not special, so they count in any text
        own.add_tokens([AddedToken(token, special=False, normalized=False) for token in QWEN_ADDED])
    return write_tokenizer(folder, own)


OTHERS = ("unigram", "wordpiece", "llama2")


def make_other(folder: Path, kind: str) -> Path:
    """Write a tokenizer that tiktoken has no form for, one of OTHERS."""
    special = OTHER_CONTROL_TOKENS
    if kind == "unigram":  # T5, ALBERT
        own = OwnTokenizer(models.Unigram())
        own.normalizer = normalizers.NFKC()
        own.pre_tokenizer = pre_tokenizers.Metaspace()
        own.decoder = decoders.Metaspace()
        train(own, trainers.UnigramTrainer(vocab_size=800, special_tokens=special, unk_token="<unk>"))
    elif kind == "wordpiece":  # BERT
        own = OwnTokenizer(models.WordPiece(unk_token="[UNK]"))
        own.normalizer = normalizers.BertNormalizer()
        own.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        own.decoder = decoders.WordPiece()
        train(own, trainers.WordPieceTrainer(vocab_size=800, special_tokens=special))
    else:  # Llama 2, Mistral 7B
        own = OwnTokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
        own.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
        own.decoder = decoders.Sequence(
            [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        )
        fallback = [f"<0x{byte:02X}>" for byte in range(256)]
        train(own, trainers.BpeTrainer(vocab_size=1000, special_tokens=[*special, *fallback]))
        own = without_special(own, fallback)
    own.post_processor = processors.TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", own.token_to_id("<|endoftext|>"))]
    )
    return write_tokenizer(folder, own)


def train(own: OwnTokenizer, trainer: Any) -> None:
    trainer.show_progress = False
    own.train_from_iterator(shipped_texts(), trainer)


def without_special(own: OwnTokenizer, tokens: list[str]) -> OwnTokenizer:
    """The same, with these tokens in the vocabulary alone: trainers have no other way to put them there."""
    spec = json.loads(own.to_str())
    spec["added_tokens"] = [token for token in spec["added_tokens"] if token["content"] not in tokens]
    return OwnTokenizer.from_str(json.dumps(spec))


def write_tokenizer(folder: Path, own: OwnTokenizer, **changes: Any) -> Path:
    """Write what a model folder has of its tokenizer; `changes` are made in tokenizer.json."""
    folder.mkdir(parents=True, exist_ok=True)
    spec = json.loads(own.to_str()) | changes
    (folder / "tokenizer.json").write_text(json.dumps(spec), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|im_end|>"}))
    end_of_text = own.token_to_id("<|im_end|>")
    (folder / "config.json").write_text(json.dumps({"max_position_embeddings": 256, "eos_token_id": end_of_text}))
    return folder


def without_byte(source: Path, target: Path, byte: int) -> Path:
    """The byte-level BPE of `source`, lacking a byte from 0 to 32, as SmolLM2's lacks 4."""
    own = own_of(source)
    model = json.loads(own.to_str())["model"]
    character = chr(0x100 + byte)  # bytes_to_unicode
    model["vocab"][character * 9] = model["vocab"].pop(character)  # a gap would shift the ids of added tokens
    return write_tokenizer(target, own, model=model)


def own_of(folder: Path) -> OwnTokenizer:
    """The model's own tokenizer, to which control tokens in a text are text."""
    own = OwnTokenizer.from_file(str(folder / "tokenizer.json"))
    own.encode_special_tokens = True
    return own


# ---- strings

WHITE = "\t\n\v\f\r\x1c\x1d\x1e\x1f \x85\xa0\u1680\u2000\u2003\u2028\u2029\u202f\u205f\u3000\u200b\u2060\ufeff"
DIGITS = "0123456789\xb2\xbd\u0663\u096a\u2167\u2460\u3007\u56db\U0001d7d8\U0001f101\U00011de3\U00016ff4"
CONTROLS = "".join(map(chr, [*range(32), *range(127, 160)]))
SCRIPTS = (
    "aZ\xe9\xdf\u017f\u212a\u0130\u0131\u03c2\u0416\u05e9\u0639\u091c\u094d\u0e01\u0e33\u4f60\u8a9e\u304c\uac00\u1112\u1161"
    "\U0001f642\U0001f469\u200d\u0301\u0308\u0338\ufb01\uff21\U00020000\U0010fffd"
)
CONTRACTIONS = "'\u2019sStTmMdDrReEvVlL\u017f \n"
FORMS = [
    *CONTROL_TOKENS, *QWEN_ADDED, "<unk>", "[UNK]", "<0x0A>", "<|", "|>", "<", "im_end", "\0", "\0-1\0", "-1", "\n\n",
    "  ", " a", "'s", "'RE", "7", "\u2581", "##s", "\r\n",
]  # fmt: skip
ANYTHING = st.characters(exclude_categories=["Cs"])

ALPHABETS = (
    ANYTHING,
    WHITE,
    WHITE + "a1.",
    DIGITS + " a",
    CONTROLS + "a",
    SCRIPTS + " ",
    CONTRACTIONS,
    " \n",
    " \n\t'.,ab17",
    DIGITS + SCRIPTS + CONTROLS + WHITE,
)
SIZES = (9, 3, 17, 6, 29, 5, 12, 2)
LENGTH = 500


def cut(text: str) -> list[str]:
    """Into strings of many lengths."""
    ends = accumulate(cycle(SIZES))
    return [text[at:end] for at, end in pairwise(chain([0], takewhile(lambda end: end < len(text), ends), [len(text)]))]


def spell(text: str) -> list[str]:
    """Each character stands for one of FORMS."""
    return ["".join(FORMS[ord(character)] for character in string) for string in cut(text)]


def stretch(text: str) -> list[str]:
    """Long runs: each character again and again, now more and now less often."""
    return ["".join(c * (1 + at * at) for at, c in enumerate(string)) for string in cut(text[: LENGTH // 5])]


# One long text, then cut: from a list hypothesis would make most of its strings anew out of a few (it mutates lists).
string_lists = st.one_of(
    *(st.text(alphabet, min_size=LENGTH, max_size=LENGTH).map(cut) for alphabet in ALPHABETS),
    st.text("".join(map(chr, range(len(FORMS)))), min_size=LENGTH, max_size=LENGTH).map(spell),
    st.text(WHITE + DIGITS + SCRIPTS + "'.", min_size=LENGTH, max_size=LENGTH).map(stretch),
)
"""Around 50 strings each, nearly all of them different."""


# ---- comparing


def encode_all(own: OwnTokenizer, texts: Sequence[str]) -> list[list[int]]:
    return [found.ids for found in own.encode_batch(list(texts), add_special_tokens=False)]


def encode_together(tokenizer: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    encoded = tokenizer.encode_examples([[Segment("user", text)] for text in texts])
    assert len(encoded.offsets) == len(texts) + 1
    return [encoded.ids[start:stop].tolist() for start, stop in pairwise(encoded.offsets)]


def check_equal(tokenizer: Tokenizer, own: OwnTokenizer, texts: Sequence[str]) -> None:
    """One by one and together, and back to text."""
    expected = encode_all(own, texts)
    assert [tokenizer.encode(text) for text in texts] == expected
    assert encode_together(tokenizer, texts) == expected
    if tokenizer.engine == "tiktoken":
        assert [tokenizer.decode(ids) for ids in expected] == [own.decode(ids, False) for ids in expected]


def check_equal_on_made_strings(folder: Path, examples: int) -> int:
    """How many different strings were compared in so many examples of hypothesis."""
    tokenizer, own = Tokenizer(folder), own_of(folder)
    control = tokenizer.control_tokens.items()
    own_takes_control_tokens = any(at in own.encode(token, add_special_tokens=False).ids for token, at in control)
    seen: set[str] = set()

    @settings(max_examples=examples, deadline=None, database=None)
    @given(string_lists)
    def check(texts: list[str]) -> None:
        if own_takes_control_tokens:  # ours never does
            texts = [text for text in texts if not any(token in text for token in tokenizer.control_tokens)]
        seen.update(texts)
        check_equal(tokenizer, own, texts)

    check()
    return len(seen)
