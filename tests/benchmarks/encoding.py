"""Our tokenizer against the model's own, on one core."""

import gc
import os
import time
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path

import numpy as np

from tests.benchmarks.rows import rows

BATCH = 1000
"""Texts in a call of the ways that take several: the default of `datasets.map`, so what TRL's users have."""

Encode = Callable[[Sequence[str]], list[list[int]]]
Trial = dict[str, tuple[float, int]]
"""Seconds and tokens by way of encoding."""


def use_one_core() -> None:
    """Pin this process to one core; before `tokenizers` is imported, which looks at these variables once."""
    os.environ |= {"TOKENIZERS_PARALLELISM": "false", "RAYON_NUM_THREADS": "1"}
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})


def trials(base_model: Path, count: int, rounds: int, seed: int) -> list[Trial]:
    """Encode `count` rows a round in every way in turn.

    Every round has rows of its own and new tokenizers: a run meets each text once, and a cache kept from the round
    before would know them all.

    Raises:
        ValueError: two ways give other tokens.
    """
    source = rows(count * rounds, seed)
    results = []
    for _ in range(rounds):
        texts = [f"{row['instruction']}\n\n{row['input']}\n\n{row['output']}" for row in islice(source, count)]
        trial: Trial = {}
        expected: list[list[int]] = []
        for name in WAYS:
            encode = WAYS[name](base_model)
            encode(["Warm up."])
            seconds, ids = _timed(encode, texts)
            expected = expected or ids
            if ids != expected:
                raise ValueError(f"{name}: other tokens than {next(iter(trial))}")
            trial[name] = seconds, sum(map(len, ids))
        results.append(trial)
    return results


def _timed(encode: Encode, texts: Sequence[str]) -> tuple[float, list[list[int]]]:
    """As timeit does, without the garbage collector, which would count lists of the ways before."""
    gc.collect()
    gc.disable()
    start = time.perf_counter()
    ids = encode(texts)
    seconds = time.perf_counter() - start
    gc.enable()
    return seconds, ids


def _batched(encode: Encode) -> Encode:
    return lambda texts: [ids for at in range(0, len(texts), BATCH) for ids in encode(texts[at : at + BATCH])]


def _ours(base_model: Path) -> Encode:
    from stages.tokens.tokenizer import Tokenizer

    tokenizer = Tokenizer(base_model)
    return lambda texts: [tokenizer.encode(text) for text in texts]


def _ours_batched(base_model: Path) -> Encode:
    from stages.instructions.templates import Segment
    from stages.tokens.tokenizer import Tokenizer

    tokenizer = Tokenizer(base_model)

    def encode(texts: Sequence[str]) -> list[list[int]]:
        found = tokenizer.encode_examples([[Segment("user", text)] for text in texts])
        return [ids.tolist() for ids in np.split(found.ids, found.offsets[1:-1])]

    return _batched(encode)


def _own(base_model: Path, way: str) -> Encode:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(base_model / "tokenizer.json"))
    tokenizer.encode_special_tokens = True  # as ours: control tokens in the data are text
    if way == "encode":
        return lambda texts: [tokenizer.encode(text, add_special_tokens=False).ids for text in texts]
    encode = getattr(tokenizer, way)
    return _batched(lambda texts: [found.ids for found in encode(texts, add_special_tokens=False)])


OWN = "the model's own, encode"
OWN_BATCHED = "the model's own, encode_batch"

WAYS: dict[str, Callable[[Path], Encode]] = {
    "ours, encode": _ours,
    "ours, encode_examples": _ours_batched,
    OWN: lambda base_model: _own(base_model, "encode"),
    OWN_BATCHED: lambda base_model: _own(base_model, "encode_batch"),
    "the model's own, encode_batch_fast": lambda base_model: _own(base_model, "encode_batch_fast"),
}
