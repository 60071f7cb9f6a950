"""The arrays and their audit against what is counted position by position."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.pipeline.errors import UserError
from stages.tokens import arrays as module
from stages.tokens.arrays import ARRAYS, DTYPES, NO_EXAMPLE, collate, read_arrays, write_arrays
from stages.tokens.audit import audit
from stages.tokens.labels import IGNORE_INDEX, Examples
from stages.tokens.packing import pack
from stages.tokens.split_tokens import SplitTokens
from tests.tokens.examples import END, make_examples, make_single_turns, naive_arrays

WIDTH = 24


@st.composite
def made_examples(draw: st.DrawFn) -> Examples:
    """Prompts and responses in turns, end-of-text inside some; a few lack it at their end, as none from a stage do."""
    tokens, in_response = [], []
    for turns in draw(st.lists(st.lists(st.tuples(*[st.integers(1, 4)] * 2), min_size=1, max_size=3), min_size=1)):
        ids = draw(st.lists(st.integers(END, 9), min_size=sum(map(sum, turns)), max_size=sum(map(sum, turns))))
        flags = [flag for prompt, response in turns for flag in [False] * prompt + [True] * response]
        tokens.append([*ids[:-1], END if draw(st.integers(0, 9)) else 3])
        in_response.append(flags)
    return make_examples(tokens, in_response)


def layouts(examples: Examples) -> list[np.ndarray]:
    return [pack(examples.lengths, WIDTH), np.arange(len(examples.lengths))]


def test_golden_arrays(tmp_path: Path) -> None:
    """Prompt 5 6, response 7, end 2; prompt 8, response 9 9, end 2: end-of-text is trained once, padding never."""
    examples = make_single_turns([[5, 6, 7, 2], [8, 9, 9, 2], [5, 7, 2]], [2, 1, 1])
    row_of, ids = np.array([0, 0, 1]), ["a", "b", "c"]
    arrays = collate(examples, row_of, ids, end_of_text=2, mask_instruction=True)
    assert arrays.input_ids.tolist() == [[5, 6, 7, 8, 9, 9], [5, 7, 2, 2, 2, 2]]
    assert arrays.labels.tolist() == [[-100, 7, 2, 9, 9, 2], [7, 2, -100, -100, -100, -100]]
    assert arrays.next_ids.tolist() == [[6, 7, 2, 9, 9, 2], [7, 2, -100, -100, -100, -100]]
    assert arrays.example.tolist() == [[0, 0, 0, 1, 1, 1], [2, 2, -1, -1, -1, -1]]
    assert audit(SplitTokens(examples, row_of, ids, []), arrays, end_of_text=2) == {
        "examples": 3,
        "rows": 2,
        "tokens": 8,
        "supervised_tokens": 7,
        "padding_fraction": 0.333333,
        "truncated": 0,
        "dropped": 0,
        "eos_trained_fraction": 1.0,
    }


@given(made_examples(), st.booleans())
@settings(deadline=None)
def test_as_laid_out_position_by_position(examples: Examples, mask_instruction: bool) -> None:
    for row_of in layouts(examples):
        ids = [f"id {at}" for at in range(len(row_of))]
        arrays = collate(examples, row_of, ids, end_of_text=END, mask_instruction=mask_instruction)
        expected = naive_arrays(examples, row_of.tolist(), mask_instruction)
        for name in ARRAYS:
            array = getattr(arrays, name)
            assert array.tolist() == expected[name], name
            assert array.dtype == DTYPES[name]
        assert arrays.ids == ids


@given(examples=made_examples(), mask_instruction=st.booleans(), rows_at_once=st.integers(1, 4))
@settings(deadline=None, max_examples=50)
def test_written_in_parts_as_numpy_would_at_once(
    tmp_path_factory: pytest.TempPathFactory, examples: Examples, mask_instruction: bool, rows_at_once: int
) -> None:
    folder = tmp_path_factory.mktemp("arrays")
    for number, row_of in enumerate(layouts(examples)):
        ids = [f"id {at}" for at in range(len(row_of))]
        options = {"end_of_text": END, "mask_instruction": mask_instruction}
        whole = collate(examples, row_of, ids, **options)  # type: ignore[arg-type]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "ROWS_AT_ONCE", rows_at_once)
            write_arrays(folder / str(number), examples, row_of, ids, **options)  # type: ignore[arg-type]
        for name in ARRAYS:
            np.save(folder / "expected.npy", getattr(whole, name))
            written = (folder / str(number) / f"{name}.npy").read_bytes()
            assert written == (folder / "expected.npy").read_bytes(), name
        assert read_arrays(folder / str(number)).ids == ids


@given(examples=made_examples(), mask_instruction=st.booleans(), dropped=st.integers(0, 3))
@settings(deadline=None)
def test_the_audit_counts_what_the_arrays_hold(examples: Examples, mask_instruction: bool, dropped: int) -> None:
    examples = examples._replace(truncated=examples.lengths % 2 == 0)
    for row_of in layouts(examples):
        split = SplitTokens(examples, row_of, [""] * len(row_of), [{}] * dropped)
        arrays = collate(examples, row_of, split.ids, end_of_text=END, mask_instruction=mask_instruction)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("stages.tokens.audit.ROWS_AT_ONCE", 2)
            found = audit(split, arrays, end_of_text=END)
        lengths = examples.lengths.tolist()
        cells = len(arrays.input_ids) * max(
            map(sum, (np.array(lengths)[row_of == row] for row in range(max(row_of) + 1)))
        )
        targets = [at for at in range(len(examples.tokens)) if at not in examples.offsets]
        assert found == {
            "examples": len(lengths),
            "rows": max(row_of) + 1,
            "tokens": sum(lengths),
            "supervised_tokens": sum(not mask_instruction or examples.in_response[at] for at in targets),
            "padding_fraction": round(1 - sum(lengths) / cells, 6),
            "truncated": sum(length % 2 == 0 for length in lengths),
            "dropped": dropped,
            "eos_trained_fraction": round(sum(examples.tokens[examples.offsets[1:] - 1] == END) / len(lengths), 6),
        }


def test_an_untrained_end_shows_in_the_audit() -> None:
    """Also where an earlier turn of the same example, or its prompt, closes with the same token."""
    examples = make_examples(
        [[5, 7, 2, 6, 2], [2, 2, 7, 2]], [[False, True, True, False, True], [False] * 2 + [True] * 2]
    )
    for mask_instruction in (True, False):
        row_of = np.array([0, 0])
        arrays = collate(examples, row_of, ["a", "b"], end_of_text=2, mask_instruction=mask_instruction)
        split = SplitTokens(examples, row_of, arrays.ids, [])
        assert audit(split, arrays, end_of_text=2)["eos_trained_fraction"] == 1.0
        arrays.labels[0, 3] = IGNORE_INDEX
        assert audit(split, arrays, end_of_text=2)["eos_trained_fraction"] == 0.5
        arrays.labels[0, 6] = IGNORE_INDEX
        assert audit(split, arrays, end_of_text=2)["eos_trained_fraction"] == 0.0


def test_reading_maps_the_file_and_copies_nothing(tmp_path: Path) -> None:
    examples = make_single_turns([[5, 6, 7, 2], [5, 7, 2]], [2, 1])
    write_arrays(tmp_path / "train", examples, np.array([0, 1]), ["a", "b"], end_of_text=2, mask_instruction=True)
    arrays = read_arrays(tmp_path / "train")
    for name in ARRAYS:
        array = getattr(arrays, name)
        assert isinstance(array, np.memmap)
        assert not array.flags.writeable
        assert array.shape == (2, 3)
    assert arrays.example[-1, -1] == NO_EXAMPLE
    with (tmp_path / "train/example.npy").open("r+b") as file:
        file.seek(-4, 2)
        file.write(np.int32(77).tobytes())
    assert arrays.example[-1, -1] == 77


@pytest.mark.parametrize("damage", ["missing", "short", "empty", "not an array"])
def test_a_damaged_file_is_named(tmp_path: Path, damage: str) -> None:
    examples = make_single_turns([[5, 6, 7, 2]], [2])
    write_arrays(tmp_path / "train", examples, np.array([0]), ["a"], end_of_text=2, mask_instruction=True)
    path = tmp_path / "train/labels.npy"
    content = {"short": path.read_bytes()[:-1], "empty": b"", "not an array": b"labels"}
    path.write_bytes(content[damage]) if damage in content else path.unlink()
    with pytest.raises(UserError, match=r"train: cannot be read .*; delete it and run `dvc repro`"):
        read_arrays(tmp_path / "train")
