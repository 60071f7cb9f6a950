"""The model's own tokenizer as a tiktoken encoding, checked against it.

A byte-level BPE `tokenizer.json` (GPT-2, SmolLM2, Llama 3, Qwen, ...) holds all that tiktoken needs: the pattern that
cuts text into pieces and the merges, in order. Text with a byte that the vocabulary lacks (SmolLM2 has no 0x04) goes
through the model's own tokenizer, which leaves such bytes out before it merges.

Control tokens are kept out of the encoding: only a template may use them, so text in the data that looks like one is
encoded as plain text.
"""

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import tiktoken
from tokenizers import Tokenizer as OwnTokenizer

from stages.instructions.templates import Segment
from stages.pipeline.errors import UserError
from stages.pipeline.files import read_json

# huggingface/tokenizers, pre_tokenizers/byte_level.rs (from openai/gpt-2, encoder.py).
BYTE_LEVEL = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"

# The same after each digit was cut out on its own: white space before a digit ends a piece, so it stays whole.
DIGITS_THEN_BYTE_LEVEL = r"\p{N}|'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+(?=\p{N})|\s+(?!\S)|\s+"

PROBES = (
    "The quick brown fox jumps over 13 lazy dogs, doesn't it?",
    "  two  spaces   three\n\n\nlines\t\ttabs  42  1999 \r\n",
    "na\u00efve caf\u00e9 \u4f60\u597d \u0928\u092e\u0938\u094d\u0924\u0947 \U0001f600\U0001f468\u200d\U0001f469",
    "<|im_start|>user <|endoftext|> </s> [INST]",
    "def f(x):\n    return {'a': [x ** 2, 1e-5]}\n",
    "\u0000\u0001\u007f\u00a0\u2003\u2028 \u00b2\u00bd\u2167",
)
"""Strings that a wrong pattern or wrong merges would betray."""


class Tokenizer:
    """Text to token ids and back.

    Attributes:
        end_of_text: id of the token that ends every example.
        control_tokens: id of each control token by its text.
    """

    def __init__(self, folder: Path) -> None:
        """Build from `tokenizer.json` and `config.json` in a model folder and check equality with the model's own.

        Raises:
            UserError: a file is missing, the tokenizer is not a byte-level BPE, or the encodings differ.
        """
        path = folder / "tokenizer.json"
        spec = read_json(path)
        added = {token["content"]: token["id"] for token in spec.get("added_tokens") or []}
        self.control_tokens = {t["content"]: t["id"] for t in spec.get("added_tokens") or [] if t["special"]}
        self.end_of_text = _end_of_text(folder, self.control_tokens)
        self._encoding, self._ids, tokens = _build(path, spec)
        self._own = OwnTokenizer.from_file(str(path))
        self._own.encode_special_tokens = True
        self._missing = bytes(byte for byte in range(256) if bytes([byte]) not in set(tokens))
        self._bytes = dict(zip(self._ids.tolist(), tokens, strict=True))
        self._bytes.update({token_id: token.encode() for token, token_id in added.items()})
        self._control = re.compile("|".join(re.escape(t) for t in sorted(self.control_tokens, key=len, reverse=True)))
        self._check(path)

    def encode(self, text: str) -> list[int]:
        """Token ids of plain text, control tokens in it taken as text."""
        if not text:
            return []
        raw = text.encode("utf-8", errors="replace")
        if len(raw.translate(None, delete=self._missing)) < len(raw):
            return list(self._own.encode(text, add_special_tokens=False).ids)
        ids: list[int] = self._ids[self._encoding.encode_ordinary(text)].tolist()
        return ids

    def encode_segments(self, segments: Iterable[Segment]) -> list[int]:
        """Token ids of a stretch of a rendered example, in which only the template's own control tokens count.

        Text between two control tokens is encoded as one, whichever segments it comes from.
        """
        ids: list[int] = []
        plain = ""
        for segment in segments:
            if segment.role in ("user", "response") or not self.control_tokens:
                plain += segment.text
                continue
            start = 0
            for match in self._control.finditer(segment.text):
                ids += self.encode(plain + segment.text[start : match.start()])
                ids.append(self.control_tokens[match.group()])
                plain, start = "", match.end()
            plain += segment.text[start:]
        return ids + self.encode(plain)

    def decode(self, ids: Iterable[int]) -> str:
        """Text of token ids; bytes that are no UTF-8 become U+FFFD, ids beyond the vocabulary nothing."""
        return b"".join(self._bytes.get(i, b"") for i in ids).decode("utf-8", errors="replace")

    def _check(self, path: Path) -> None:
        for text in PROBES:
            expected = self._own.encode(text, add_special_tokens=False).ids
            if self.encode(text) != expected:
                raise UserError(
                    f"{path}: tiktoken and the model's own tokenizer disagree on {text!r}; use another model"
                )


def _end_of_text(folder: Path, control_tokens: dict[str, int]) -> int:
    """`eos_token` of tokenizer_config.json if it is a control token, else `eos_token_id` of config.json."""
    settings = read_json(folder / "tokenizer_config.json") if (folder / "tokenizer_config.json").exists() else {}
    token = settings.get("eos_token")
    token = token.get("content") if isinstance(token, dict) else token
    if token in control_tokens:
        return control_tokens[token]
    config = read_json(folder / "config.json")
    eos = config.get("eos_token_id")
    eos = eos[0] if isinstance(eos, list) and eos else eos
    if not isinstance(eos, int):
        raise UserError(f"{folder}/config.json: names no eos_token_id; set it to the id of the end-of-text token")
    return eos


def _build(path: Path, spec: dict[str, Any]) -> tuple[tiktoken.Encoding, np.ndarray, list[bytes]]:
    """The encoding over merge ranks, the token id of each rank (int32, (ranks,)), and its bytes."""
    model = spec["model"]
    if model.get("type") != "BPE" or model.get("byte_fallback"):
        raise UserError(f"{path}: not a byte-level BPE tokenizer, which is the one kind supported; use another model")
    pattern = _pattern(path, spec.get("pre_tokenizer") or {}, spec.get("normalizer"))
    to_byte = {character: byte for byte, character in _byte_characters().items()}
    ranks: dict[bytes, int] = {}
    ids: list[int] = []

    def add(token: str, token_id: int) -> None:
        raw = bytes(to_byte[character] for character in token)
        if raw not in ranks:
            ranks[raw] = len(ids)
            ids.append(token_id)

    try:
        for character in _byte_characters().values():
            if character in model["vocab"]:
                add(character, model["vocab"][character])
        for merge in model["merges"]:
            left, right = merge if isinstance(merge, list) else merge.split(" ")
            add(left + right, model["vocab"][left + right])
    except KeyError as error:
        raise UserError(f"{path}: token {error} has no id or no bytes; not a byte-level BPE tokenizer") from None
    encoding = tiktoken.Encoding(path.parent.name, pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
    return encoding, np.array(ids, dtype=np.int32), list(ranks)


def _pattern(path: Path, pre_tokenizer: dict[str, Any], normalizer: object) -> str:
    """The one regular expression that cuts text as `pre_tokenizer` does."""
    steps = pre_tokenizer.get("pretokenizers", [pre_tokenizer])
    kinds = [step.get("type") for step in steps]
    last = steps[-1]
    whole = normalizer is None and last.get("type") == "ByteLevel" and not last.get("add_prefix_space")
    if whole and kinds == ["ByteLevel"] and last.get("use_regex", True):
        return BYTE_LEVEL
    if whole and kinds == ["Digits", "ByteLevel"] and steps[0].get("individual_digits") and last.get("use_regex", True):
        return DIGITS_THEN_BYTE_LEVEL
    if whole and kinds == ["Split", "ByteLevel"] and not last.get("use_regex", True):
        split = steps[0]
        if "Regex" in split["pattern"] and split["behavior"] == "Isolated" and not split.get("invert"):
            return str(split["pattern"]["Regex"])
    found = json.dumps({"normalizer": normalizer, "pre_tokenizer": kinds})
    raise UserError(f"{path}: cuts text in a way that is not supported ({found}); use another model")


def _byte_characters() -> dict[int, str]:
    """The printable character that stands for each byte (openai/gpt-2, encoder.py, bytes_to_unicode)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAC + 1), *range(0xAE, 0xFF + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    pairs = {byte: chr(byte) for byte in printable}
    pairs.update({byte: chr(256 + position) for position, byte in enumerate(others)})
    return pairs
