"""Rows that overlap a benchmark: trained on, they would make its result worthless.

Two tests. A run of 13 words in common with a text of the benchmark (Brown et al. 2020, arXiv 2005.14165, appendix C);
and a prompt that is a near-duplicate of one, for texts too short for that.
"""

import csv
import io
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stages.instructions.duplicates import Shingles, find_candidates, normalize, window_hashes
from stages.instructions.instruction import Instruction
from stages.instructions.raw_files import read_text, read_values, suffix_of
from stages.pipeline.errors import UserError
from stages.pipeline.progress import say

NUM_WORDS = 13
NEAR = 0.7
"""Jaccard similarity from which a prompt is a near-duplicate of a benchmark's text."""

SEED = 3
MIN_CHARACTERS = 20
"""Of a normalized text that counts: below are answers, labels and names, which any data may hold."""


def find_overlaps(rows: Iterable[Instruction], folder: Path, names: Sequence[str]) -> dict[int, str]:
    """Position of each row that overlaps one of the benchmarks `names` in `folder`, with the file it overlaps.

    Raises:
        UserError: a benchmark is not there or holds no text.
    """
    texts, files = _texts(folder, names)
    words = _Words()
    ngrams = [words.ngrams(text) for text in texts]
    known, owner = np.unique(np.concatenate(ngrams), return_index=True)
    owners = np.repeat(np.arange(len(texts)), [len(found) for found in ngrams])[owner]
    del ngrams
    overlaps: dict[int, str] = {}
    prompts: list[str] = []
    asked_by: list[int] = []
    for at, row in enumerate(rows):
        said = " ".join([*(text for turn in row.history for text in turn), row.instruction, row.input, row.response])
        own = words.ngrams(normalize(said))
        places = np.minimum(np.searchsorted(known, own), max(0, len(known) - 1))
        shared = np.flatnonzero(known[places] == own) if len(known) else np.zeros(0, dtype=np.int64)
        if len(shared):
            overlaps[at] = f"{NUM_WORDS} words in common with {files[owners[places[shared[0]]]]}"
        asked = [*(turn.user for turn in row.history), f"{row.instruction}\n{row.input}"]
        prompts += map(normalize, asked)
        asked_by += [at] * len(asked)
    shingles = Shingles(texts + prompts)
    side = np.arange(len(shingles)) >= len(texts)
    candidates = find_candidates(shingles, NEAR, SEED, side)
    if candidates.not_compared:
        say(
            f"warning: {candidates.not_compared} pairs of prompts and benchmark texts not compared: too many look alike"
        )
    for later, earlier in candidates.pairs.tolist():
        at = asked_by[later - len(texts)]
        if at not in overlaps and shingles.jaccard(later, earlier) >= NEAR:
            overlaps[at] = f"near-duplicate of a text in {files[earlier]}"
    return overlaps


class _Words:
    """Words as numbers, in the order in which they come."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def ngrams(self, text: str) -> np.ndarray:
        """Hash of each run of NUM_WORDS words of a normalized text, uint64."""
        numbers = [self._numbers.setdefault(word, len(self._numbers)) for word in text.split()]
        return window_hashes(np.array(numbers, dtype=np.uint64), NUM_WORDS)


def _texts(folder: Path, names: Sequence[str]) -> tuple[list[str], list[str]]:
    """Every distinct text of the benchmarks, normalized, and the file it is first found in."""
    found: dict[str, str] = {}
    for name in names:
        if not (folder / name).is_dir():
            there = sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
            raise UserError(
                f"format.remove_benchmarks: no folder {folder / name}; there are: {', '.join(there) or 'none'}"
            )
        any_text = False
        for path in sorted(path for path in (folder / name).rglob("[!.]*") if path.is_file()):
            for text in map(normalize, _strings(_values(path))):
                if len(text) >= MIN_CHARACTERS:
                    found.setdefault(text, path.relative_to(folder).as_posix())
                    any_text = True
        if not any_text:
            raise UserError(f"{folder / name}: holds no text to compare with (.json, .jsonl, .csv, .tsv, .parquet)")
    return list(found), list(found.values())


def _values(path: Path) -> Iterator[Any]:
    """What a publisher's file holds; nothing of a file of another kind, such as a licence or a script."""
    kind = suffix_of(path)
    if kind == ".parquet":
        yield from (value for _, value, _ in read_values(path))
        return
    if kind not in (".json", ".jsonl", ".ndjson", ".csv", ".tsv"):
        return
    text = read_text(path)
    try:
        if kind == ".csv":
            csv.field_size_limit(sys.maxsize)
            yield from csv.reader(io.StringIO(text, newline=""))
        elif kind == ".tsv":  # GLUE's have quotes that mean nothing
            yield from (line.split("\t") for line in text.split("\n"))
        else:
            yield from _json_values(text)
    except (ValueError, RecursionError, csv.Error) as error:
        raise UserError(f"{path}: cannot be read ({error}); fetch the benchmark again") from None


def _json_values(text: str) -> Iterator[Any]:
    """One value, or one after the other, whichever the name promises."""
    decoder, at = json.JSONDecoder(), 0
    while True:
        while at < len(text) and text[at].isspace():
            at += 1
        if at == len(text):
            return
        value, at = decoder.raw_decode(text, at)
        yield value


def _strings(values: Iterable[Any]) -> Iterator[str]:
    for value in values:
        if isinstance(value, str):
            yield value
        elif isinstance(value, dict):
            yield from _strings(value.values())
        elif isinstance(value, list):
            yield from _strings(value)
