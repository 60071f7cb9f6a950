"""Token arrays on disk: one folder a split, each array a `.npy` file that is read without a copy."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stages.pipeline.errors import UserError
from stages.pipeline.files import read_json, write_json
from stages.tokens.labels import IGNORE_INDEX, Example

NO_EXAMPLE = -1


@dataclass(frozen=True)
class TokenArrays:
    """One split, collated: rows of one or more examples, padded on the right. All arrays (row, time)."""

    input_ids: np.ndarray
    """int32; end-of-text where there is padding."""
    labels: np.ndarray
    """int32: the next token where training wants a loss, else IGNORE_INDEX. Already shifted by one."""
    next_ids: np.ndarray
    """int32: the next token everywhere, IGNORE_INDEX at padding."""
    in_response: np.ndarray
    """bool: whether the next token belongs to a response."""
    example: np.ndarray
    """int32: position of the example in `ids`, NO_EXAMPLE at padding; attention stays inside one example."""
    ids: list[str]
    """Id of each example's prompt."""


ARRAYS = ("input_ids", "labels", "next_ids", "in_response", "example")


def collate(
    examples: Sequence[Example],
    ids: Sequence[str],
    rows: Sequence[Sequence[int]],
    *,
    end_of_text: int,
    mask_instruction: bool,
) -> TokenArrays:
    """Lay examples out as `rows` says, and pad every row to the longest.

    The first end-of-text closes an example and is trained; padding repeats it in `input_ids` and carries no loss.
    """
    width = max(sum(len(examples[i].input_ids) for i in row) for row in rows)
    shape = (len(rows), width)
    input_ids = np.full(shape, end_of_text, dtype=np.int32)
    next_ids = np.full(shape, IGNORE_INDEX, dtype=np.int32)
    in_response = np.zeros(shape, dtype=bool)
    example = np.full(shape, NO_EXAMPLE, dtype=np.int32)
    for at, row in enumerate(rows):
        start = 0
        for i in row:
            stop = start + len(examples[i].input_ids)
            input_ids[at, start:stop] = examples[i].input_ids
            next_ids[at, start:stop] = examples[i].next_ids
            in_response[at, start:stop] = examples[i].in_response
            example[at, start:stop] = i
            start = stop
    labels = np.where(in_response, next_ids, IGNORE_INDEX).astype(np.int32) if mask_instruction else next_ids
    return TokenArrays(input_ids, labels, next_ids, in_response, example, list(ids))


def write_arrays(folder: Path, arrays: TokenArrays) -> None:
    """Write one split into an empty folder."""
    folder.mkdir()
    for name in ARRAYS:
        np.save(folder / f"{name}.npy", getattr(arrays, name))
    write_json(folder / "ids.json", arrays.ids)


def read_arrays(folder: Path) -> TokenArrays:
    """Memory-map one split.

    Raises:
        UserError: a file is missing or damaged.
    """
    try:
        arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in ARRAYS}
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{folder}: cannot be read ({error}); delete it and run `dvc repro`") from None
    return TokenArrays(**arrays, ids=read_json(folder / "ids.json"))
