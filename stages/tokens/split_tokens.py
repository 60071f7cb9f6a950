"""One split, from a file of prompts to tokenized examples in rows."""

import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from stages.instructions.prompts import iterate_prompts, segments_of
from stages.pipeline.files import count_parquet
from stages.pipeline.progress import bar
from stages.tokens.labels import Examples, join, label
from stages.tokens.packing import pack
from stages.tokens.tokenizer import Tokenizer

BATCH = 2048
"""Prompts that one thread takes at a time."""


class SplitTokens(NamedTuple):
    """A tokenized split and what became of its prompts."""

    examples: Examples
    row_of: np.ndarray
    """int64 (examples,): the row that each example is laid into."""
    ids: list[str]
    """Id of each example's prompt."""
    dropped: list[dict[str, Any]]
    """Id, file and line of each prompt that leaves no room for a response."""


def tokenize_split(path: Path, tokenizer: Tokenizer, *, strategy: str, max_seq_len: int) -> SplitTokens | None:
    """Tokenize, label and lay out the prompts of a file; None if all of them are too long.

    Batches go through threads: tiktoken and tokenizers both let others run while they work.
    """
    parts: list[Examples] = []
    sizes, ids, dropped = [], [], []
    for batch, part in _labelled(path, tokenizer, max_seq_len):
        parts.append(part)
        sizes.append(len(batch))
        batch_ids = batch.column("id").to_pylist()
        ids += [batch_ids[at] for at in part.kept]
        if len(part.kept) < len(batch):
            gone = np.setdiff1d(np.arange(len(batch)), part.kept)
            dropped += batch.select(["id", "file", "line"]).take(pa.array(gone)).to_pylist()
    if not ids:
        return None
    examples = join(parts, sizes)
    del parts
    row_of = pack(examples.lengths, max_seq_len) if strategy == "pack" else np.arange(len(ids))
    return SplitTokens(examples, row_of, ids, dropped)


def _labelled(path: Path, tokenizer: Tokenizer, max_seq_len: int) -> Iterator[tuple[pa.RecordBatch, Examples]]:
    """Batches of prompts in order, with their examples; a few are under way at a time."""
    threads = os.cpu_count() or 1
    waiting: deque[tuple[pa.RecordBatch, Future[Examples]]] = deque()
    total = count_parquet(path)
    with ThreadPoolExecutor(threads) as pool, bar(f"tokenizing {path.stem}", total) as progress:
        for batch in iterate_prompts(path, ("id", "file", "line", "segments"), BATCH):
            waiting.append((batch, pool.submit(_label_batch, batch, tokenizer, max_seq_len)))
            if len(waiting) > 2 * threads:
                progress.advance(len(waiting[0][0]))
                yield _result(waiting)
        while waiting:
            yield _result(waiting)


def _result(waiting: deque[tuple[pa.RecordBatch, Future[Examples]]]) -> tuple[pa.RecordBatch, Examples]:
    batch, future = waiting.popleft()
    return batch, future.result()


def _label_batch(batch: pa.RecordBatch, tokenizer: Tokenizer, max_seq_len: int) -> Examples:
    return label(segments_of(batch), tokenizer, max_seq_len)
