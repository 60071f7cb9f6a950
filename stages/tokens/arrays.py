"""Token arrays on disk: one folder a split, each array a `.npy` file that is read without a copy."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stages.pipeline.errors import UserError
from stages.pipeline.files import read_json, write_json
from stages.pipeline.progress import bar
from stages.tokens.labels import IGNORE_INDEX, Examples

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


DTYPES = {"input_ids": "i4", "labels": "i4", "next_ids": "i4", "in_response": "?", "example": "i4"}
ARRAYS = tuple(DTYPES)
ROWS_AT_ONCE = 2048


def collate(
    examples: Examples, row_of: np.ndarray, ids: Sequence[str], *, end_of_text: int, mask_instruction: bool
) -> TokenArrays:
    """Lay examples out in the rows that `row_of`, int64 (examples,), says, and pad every row to the longest.

    The first end-of-text closes an example and is trained; padding repeats it in `input_ids` and carries no loss.
    """
    parts = _blocks(examples, row_of, end_of_text=end_of_text, mask_instruction=mask_instruction)
    whole = [np.concatenate(arrays) for arrays in zip(*parts, strict=True)]
    return TokenArrays(**dict(zip(ARRAYS, whole, strict=True)), ids=list(ids))


def write_arrays(
    folder: Path,
    examples: Examples,
    row_of: np.ndarray,
    ids: Sequence[str],
    *,
    end_of_text: int,
    mask_instruction: bool,
) -> None:
    """Write one split, collated as by `collate`, into an empty folder, some rows at a time."""
    folder.mkdir()
    num_rows, width = _shape(examples, row_of)
    with ExitStack() as stack, bar(f"writing {folder.name}", num_rows) as progress:
        files = [stack.enter_context((folder / f"{name}.npy").open("wb")) for name in ARRAYS]
        for file, name in zip(files, ARRAYS, strict=True):
            kind = np.lib.format.dtype_to_descr(np.dtype(DTYPES[name]))
            header = {"descr": kind, "fortran_order": False, "shape": (num_rows, width)}
            np.lib.format.write_array_header_1_0(file, header)
        for block in _blocks(examples, row_of, end_of_text=end_of_text, mask_instruction=mask_instruction):
            for file, array in zip(files, block, strict=True):
                array.tofile(file)
            progress.advance(len(block[0]))
    write_json(folder / "ids.json", list(ids))


def _shape(examples: Examples, row_of: np.ndarray) -> tuple[int, int]:
    """Rows, and positions in the longest."""
    sizes = np.bincount(row_of, weights=examples.lengths)
    return len(sizes), int(sizes.max())


def _blocks(
    examples: Examples, row_of: np.ndarray, *, end_of_text: int, mask_instruction: bool
) -> Iterator[tuple[np.ndarray, ...]]:
    """The arrays of ARRAYS, ROWS_AT_ONCE rows at a time."""
    num_rows, width = _shape(examples, row_of)
    order = np.argsort(row_of, kind="stable")
    first_of_row = np.searchsorted(row_of[order], np.arange(num_rows + 1))
    for start in range(0, num_rows, ROWS_AT_ONCE):
        stop = min(start + ROWS_AT_ONCE, num_rows)
        here = order[first_of_row[start] : first_of_row[stop]]
        lengths = examples.lengths[here]
        ends = np.cumsum(lengths)
        within = np.arange(int(ends[-1])) - np.repeat(ends - lengths, lengths)
        source = np.repeat(examples.offsets[:-1][here], lengths) + within
        row_starts = np.concatenate([[0], ends])[first_of_row[start:stop] - first_of_row[start]]
        in_row = ends - lengths - row_starts[row_of[here] - start]
        place = np.repeat((row_of[here] - start) * width + in_row, lengths) + within
        shape = (stop - start, width)
        input_ids = np.full(shape, end_of_text, dtype=np.int32)
        next_ids = np.full(shape, IGNORE_INDEX, dtype=np.int32)
        in_response = np.zeros(shape, dtype=bool)
        example = np.full(shape, NO_EXAMPLE, dtype=np.int32)
        input_ids.flat[place] = examples.tokens[source]
        next_ids.flat[place] = examples.tokens[source + 1]
        in_response.flat[place] = examples.in_response[source + 1]
        example.flat[place] = np.repeat(here, lengths)
        labels = np.where(in_response, next_ids, np.int32(IGNORE_INDEX)) if mask_instruction else next_ids
        yield input_ids, labels, next_ids, in_response, example


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
