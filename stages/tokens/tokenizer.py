"""The model's own tokenizer as a tiktoken encoding, checked against it.

A byte-level BPE `tokenizer.json` (GPT-2, SmolLM2, Llama 3, Qwen, ...) holds all that tiktoken needs: the pattern that
cuts text into pieces and the merges, in order. Text with a byte that the vocabulary lacks (SmolLM2 has no 0x04) goes
through the model's own tokenizer, which leaves such bytes out before it merges; and so does every text of a tokenizer
of another kind.

Control tokens are kept out of the text: only a template may use them, so text in the data that looks like one is
encoded as plain text. Many examples are encoded in one call: control tokens and the marks of turns and ends of examples
stand in the joined text as special tokens between NUL characters, which plain text does not hold.
"""

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tiktoken
from tokenizers import Tokenizer as OwnTokenizer
from tokenizers.models import BPE
from tokenizers.normalizers import Normalizer

from stages.instructions.templates import Segment
from stages.pipeline.errors import UserError
from stages.pipeline.files import read_json

# huggingface/tokenizers, pre_tokenizers/byte_level.rs (from openai/gpt-2, encoder.py); possessive, so that a long run
# of one character does not exhaust the regular expression's stack (openai/tiktoken, pull request 258).
BYTE_LEVEL = r"'(?:[sdmt]|re|ve|ll)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"

# What tokenizers takes for a digit: those of Unicode 17, of which tiktoken's \p{N} has none yet.
DIGIT = r"\p{N}\x{11DE0}-\x{11DE9}\x{16FF4}-\x{16FF6}"

# The same after each digit was cut out on its own: white space before a digit ends a piece, so it stays whole.
DIGITS_THEN_BYTE_LEVEL = (
    rf"[{DIGIT}]|'(?:[sdmt]|re|ve|ll)| ?\p{{L}}++| ?[^\s\p{{L}}{DIGIT}]++|\s++(?=[{DIGIT}])|\s++$|\s+(?!\S)|\s"
)

NORMAL_FORMS = {None, "NFC", "NFD", "NFKC", "NFKD"}
"""Normalizers that leave a NUL alone and compose nothing across it, so that many texts go through them at once."""

PROBES = (
    "The quick brown fox jumps over 13 lazy dogs, doesn't it?",
    "  two  spaces   three\n\n\nlines\t\ttabs  42  1999 \r\n",
    "na\u00efve caf\u00e9 \u4f60\u597d \u0928\u092e\u0938\u094d\u0924\u0947 \U0001f600\U0001f468\u200d\U0001f469",
    "<|im_start|>user <|endoftext|> </s> [INST]",
    "def f(x):\n    return {'a': [x ** 2, 1e-5]}\n",
    "\u0001\u007f\u00a0\u2003\u2028 \u00b2\u00bd\u2167",
)
"""Strings that a wrong pattern or wrong merges would betray."""

TURN, END = -1, -2
"""Marks among token ids: prompt and response change places; an example ends."""


class EncodedExamples(NamedTuple):
    """Examples one after the other."""

    ids: np.ndarray
    """int32 (tokens,)."""
    in_response: np.ndarray
    """bool (tokens,): whether the token belongs to a response or closes one."""
    offsets: np.ndarray
    """int64 (examples + 1,): where each example's tokens begin."""


class UnsupportedError(Exception):
    """Why tiktoken cannot stand for a tokenizer."""


class Tokenizer:
    """Text to token ids and back.

    Attributes:
        end_of_text: id of the token that ends every example.
        control_tokens: id of each control token by its text.
        engine: `tiktoken`, or `tokenizers` where the model's tokenizer is no byte-level BPE, or tiktoken disagrees.
    """

    def __init__(self, folder: Path) -> None:
        """Build from `tokenizer.json` and `config.json` in a model folder and check equality with the model's own.

        Raises:
            UserError: a file is missing or damaged, or no token ends a text.
        """
        path = folder / "tokenizer.json"
        spec = read_json(path)
        try:
            self._own = OwnTokenizer.from_file(str(path))
        except Exception as error:  # the library raises nothing more particular
            raise UserError(f"{path}: not a tokenizer ({error}); fetch the model again") from None
        added = {token["content"]: token["id"] for token in spec.get("added_tokens") or []}
        self.control_tokens = {t["content"]: t["id"] for t in spec.get("added_tokens") or [] if t["special"]}
        self.end_of_text = _end_of_text(folder, self.control_tokens)
        self._encoder = _encoder(spec, self._own, self.control_tokens)
        self._control = re.compile("|".join(re.escape(t) for t in sorted(self.control_tokens, key=len, reverse=True)))
        self._cut: dict[str, list[str | int]] = {}
        self._marks = {mark: f"\0{mark}\0" for mark in (TURN, END, *self.control_tokens.values())}
        self.engine = "tiktoken"
        try:
            ranks, ids = _ranks(spec)
            apart = [token["content"] for token in spec.get("added_tokens") or [] if not token["special"]]
            self._fast = _Fast(_pattern(spec), ranks, ids, self._marks, apart, self._own.normalizer)
            self._bytes = dict(zip(ids, ranks, strict=True))
            self._bytes.update({token_id: token.encode() for token, token_id in added.items()})
            if any(self.encode(text) != self._encode_alone([text]) for text in PROBES):
                raise UnsupportedError("tiktoken disagrees with it")
        except UnsupportedError:
            self.engine = "tokenizers"

    def encode(self, text: str) -> list[int]:
        """Token ids of plain text, control tokens in it taken as text."""
        ids: list[int] = self._encode([text] if text else []).tolist()
        return ids

    def encode_segments(self, segments: Sequence[Segment]) -> list[int]:
        """Token ids of a rendered example or the beginning of one."""
        ids: list[int] = self.encode_examples([segments]).ids.tolist()
        return ids

    def encode_examples(self, examples: Iterable[Sequence[Segment]]) -> EncodedExamples:
        """Token ids of rendered examples, in which only the template's own control tokens count.

        Text between two control tokens is encoded as one, whichever segments it comes from; but a response begins and
        ends with a token of its own, so that a prompt is encoded as it will be when the response is still to come.
        """
        ids = self._encode([piece for segments in examples for piece in self._pieces(segments)])
        is_end, is_token = ids == END, ids >= 0
        turns = np.cumsum(ids == TURN)
        ends = np.flatnonzero(is_end)
        turns_before = np.concatenate([[0], turns[ends]])[:-1]
        sizes = np.diff(np.concatenate([[-1], ends]))
        in_response = (turns - np.repeat(turns_before, sizes)) % 2 == 1
        offsets = np.concatenate([[0], np.cumsum(is_token)[ends]])
        return EncodedExamples(ids[is_token], in_response[is_token], offsets)

    def decode(self, ids: Iterable[int]) -> str:
        """Text of token ids; bytes that are no UTF-8 become U+FFFD, ids beyond the vocabulary nothing."""
        if self.engine == "tokenizers":
            return str(self._own.decode(list(ids), skip_special_tokens=False))
        return b"".join(self._bytes.get(i, b"") for i in ids).decode("utf-8", errors="replace")

    def token(self, token_id: int) -> str:
        """One token for a reader: bytes that are no whole character as \\x.., a token of no text by its name."""
        if self.engine == "tiktoken":
            return self._bytes.get(token_id, b"").decode("utf-8", errors="backslashreplace")
        text = self.continuation([token_id])
        return str(self._own.id_to_token(token_id)) if text in ("", "\ufffd") else text

    def is_whole(self, ids: Sequence[int]) -> bool:
        """Whether tokens, the first of which begins a character, end with one."""
        if self.engine == "tokenizers":
            return "\ufffd" not in self.continuation(ids)
        try:
            b"".join(self._bytes.get(i, b"") for i in ids).decode()
        except UnicodeDecodeError:
            return False
        return True

    def continuation(self, ids: Sequence[int]) -> str:
        """What tokens add to a text that they follow: some decoders leave out white space at the beginning of one."""
        if self.engine == "tiktoken":
            return self.decode(ids)
        if len(ids) == 1 and ids[0] in self.control_tokens.values():
            return str(self._own.id_to_token(ids[0]))
        before = self._encoder.encode("a", add_special_tokens=False).ids
        return self.decode([*before, *ids]).removeprefix(self.decode(before))

    def _pieces(self, segments: Sequence[Segment]) -> list[str | int]:
        """Plain texts, control tokens by id, and marks."""
        pieces: list[str | int] = []
        responding = False
        for role, text in segments:
            if (role in ("response", "end")) != responding:
                pieces.append(TURN)
                responding = not responding
            if role in ("user", "response"):
                pieces.append(text)
            else:
                if text not in self._cut:
                    self._cut[text] = self._at_control_tokens(text)
                pieces += self._cut[text]
        pieces.append(END)
        return pieces

    def _at_control_tokens(self, text: str) -> list[str | int]:
        if not self.control_tokens:
            return [text]
        plain = self._control.split(text)
        pieces: list[str | int] = [plain[0]]
        for token, following in zip(self._control.findall(text), plain[1:], strict=True):
            pieces += [self.control_tokens[token], following]
        return pieces

    def _encode(self, pieces: list[str | int]) -> np.ndarray:
        """Ids, control tokens and marks in their places, int32."""
        if self.engine == "tiktoken":
            found = self._fast.encode(pieces)
            if found is not None:
                return found
            if pieces.count(END) > 1:  # some example is not for tiktoken; the others are
                examples = _split_after(pieces, END)
                return np.concatenate([self._encode(example) for example in examples])
        return np.array(self._encode_alone(pieces), dtype=np.int32)

    def _encode_alone(self, pieces: Sequence[str | int]) -> list[int]:
        """The same through the model's own tokenizer."""
        stretches: list[str | int] = []
        for piece in pieces:
            if isinstance(piece, str) and stretches and isinstance(stretches[-1], str):
                stretches[-1] += piece
            else:
                stretches.append(piece)
        texts = [_whole(stretch) for stretch in stretches if isinstance(stretch, str)]
        encoded = iter(self._encoder.encode_batch_fast(texts, add_special_tokens=False))
        ids: list[int] = []
        for stretch in stretches:
            ids += next(encoded).ids if isinstance(stretch, str) else [stretch]
        return ids


class _Fast:
    """A tiktoken encoding over merge ranks; `apart` are added tokens that count in any text, which it does not know."""

    def __init__(
        self,
        pattern: str,
        ranks: dict[bytes, int],
        ids: list[int],
        marks: dict[int, str],
        apart: list[str],
        normalizer: Normalizer | None,
    ) -> None:
        special = {mark: len(ranks) + at for at, mark in enumerate(marks.values())}
        self._encoding = tiktoken.Encoding("model", pat_str=pattern, mergeable_ranks=ranks, special_tokens=special)
        self._special = set(special)
        self._ids = np.array([*ids, *marks], dtype=np.int32)
        self._marks = marks
        self._missing = bytes(byte for byte in range(1, 256) if bytes([byte]) not in ranks)
        self._apart = re.compile("|".join(map(re.escape, apart))) if apart else None
        self._normalizer = normalizer

    def encode(self, pieces: Sequence[str | int]) -> np.ndarray | None:
        """Ids, int32; None where a text holds what tiktoken cannot encode as the model's own tokenizer does.

        That is a NUL, a byte that the vocabulary lacks, an added token, or a run too long for the pattern.
        """
        joined = _whole("".join([piece if isinstance(piece, str) else self._marks[piece] for piece in pieces]))
        if self._apart and self._apart.search(joined):
            return None
        if self._normalizer and not joined.isascii():
            joined = self._normalizer.normalize_str(joined)
            if self._apart and self._apart.search(joined):
                return None
        raw = joined.encode()
        num_marks = sum(not isinstance(piece, str) for piece in pieces)
        if raw.count(b"\0") != 2 * num_marks or len(raw.translate(None, delete=self._missing)) < len(raw):
            return None
        try:
            found = self._encoding.encode_to_numpy(joined, allowed_special=self._special, disallowed_special=())
        except ValueError:  # the pattern runs out of stack
            return None
        return self._ids[found]


def _whole(text: str) -> str:
    """The text with ? for half a surrogate pair, which neither library takes."""
    return text.encode("utf-8", errors="replace").decode()


def _split_after(pieces: list[str | int], mark: int) -> list[list[str | int]]:
    parts: list[list[str | int]] = [[]]
    for piece in pieces:
        parts[-1].append(piece)
        if piece == mark:
            parts.append([])
    return parts[:-1]


def _encoder(spec: dict[str, Any], own: OwnTokenizer, control_tokens: dict[str, int]) -> OwnTokenizer:
    """The model's own tokenizer, to which control tokens in a text are text.

    Unigram and others with a vocabulary of whole pieces would find them there all the same: they get names that no
    text holds. BPE comes to a token by its merges alone.
    """
    model = spec["model"]
    vocab = model.get("vocab")
    if model["type"] != "BPE":
        pieces = vocab if isinstance(vocab, dict) else {piece: at for at, (piece, _) in enumerate(vocab)}
        unknown = model.get("unk_token", model.get("unk_id"))
        hidden = {piece for piece, at in pieces.items() if piece in control_tokens and unknown not in (piece, at)}
        if isinstance(vocab, dict):
            vocab = {f"\0{piece}" if piece in hidden else piece: at for piece, at in vocab.items()}
        else:
            vocab = [[f"\0{piece}" if piece in hidden else piece, score] for piece, score in vocab]
        added = [token for token in spec.get("added_tokens") or [] if token["content"] not in hidden]
        changed = {"model": model | {"vocab": vocab}, "added_tokens": added, "post_processor": None}
        own = OwnTokenizer.from_str(json.dumps(spec | changed))
    own.encode_special_tokens = True
    own.no_truncation()  # a file may ask for both; transformers overrides them
    own.no_padding()
    return own


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


def _ranks(spec: dict[str, Any]) -> tuple[dict[bytes, int], list[int]]:
    """Rank of each token's bytes in the order of merges, and the token id of each rank."""
    model = spec["model"]
    others = ("byte_fallback", "dropout", "continuing_subword_prefix", "end_of_word_suffix")
    if model.get("type") != "BPE" or any(model.get(key) for key in others):
        raise UnsupportedError("not a byte-level BPE tokenizer")
    to_byte = {character: byte for byte, character in _byte_characters().items()}
    ranks: dict[bytes, int] = {}
    ids: list[int] = []

    def add(token: str) -> None:
        raw = bytes([to_byte[character] for character in token])
        if raw not in ranks:
            ranks[raw] = len(ids)
            ids.append(model["vocab"][token])
        elif ranks[raw] < len(ids) - 1:
            raise UnsupportedError(f"token {token} comes from merges far apart")

    try:
        for character in _byte_characters().values():
            if character in model["vocab"]:
                add(character)
        merges = [tuple(merge if isinstance(merge, list) else merge.split(" ")) for merge in model["merges"]]
        for left, right in merges:
            add(left + right)
    except KeyError as error:
        raise UnsupportedError(f"token {error} has no id or no bytes") from None
    added = {token["content"] for token in spec.get("added_tokens") or []}
    if model.get("ignore_merges") and set(model["vocab"].values()) - set(ids) - {model["vocab"].get(t) for t in added}:
        raise UnsupportedError("some tokens come from no merge")
    # tiktoken joins any two neighbours that make a token, the model's own only those that a merge names. Neighbours
    # that make a token have come about as in that token alone (a merge across its ends would have left no such
    # neighbours), so it is enough that no token alone is left in two; in more, tiktoken takes it only as a whole piece.
    plain = BPE(model["vocab"], merges)
    for left, right in merges:
        parts = len(plain.tokenize(left + right))
        if parts == 2 or (parts > 2 and not model.get("ignore_merges")):
            raise UnsupportedError(f"its merges do not lead to token {left + right}")
    return ranks, ids


def _pattern(spec: dict[str, Any]) -> str:
    """The one regular expression that cuts text as the tokenizer's `pre_tokenizer` does."""
    pre_tokenizer = spec.get("pre_tokenizer") or {}
    steps = pre_tokenizer.get("pretokenizers", [pre_tokenizer])
    kinds = [step.get("type") for step in steps]
    last = steps[-1]
    form = (spec.get("normalizer") or {}).get("type")
    whole = form in NORMAL_FORMS and last.get("type") == "ByteLevel" and not last.get("add_prefix_space")
    if whole and kinds == ["ByteLevel"] and last.get("use_regex", True):
        return BYTE_LEVEL
    if whole and kinds == ["Digits", "ByteLevel"] and steps[0].get("individual_digits") and last.get("use_regex", True):
        return DIGITS_THEN_BYTE_LEVEL
    if whole and kinds == ["Split", "ByteLevel"] and not last.get("use_regex", True):
        split = steps[0]
        if "Regex" in split["pattern"] and split["behavior"] == "Isolated" and not split.get("invert"):
            return str(split["pattern"]["Regex"])
    raise UnsupportedError(f"cuts text by {kinds}, normalizer {form}")


def _byte_characters() -> dict[int, str]:
    """The printable character that stands for each byte (openai/gpt-2, encoder.py, bytes_to_unicode)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAC + 1), *range(0xAE, 0xFF + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    pairs = {byte: chr(byte) for byte in printable}
    pairs.update({byte: chr(256 + position) for position, byte in enumerate(others)})
    return pairs
