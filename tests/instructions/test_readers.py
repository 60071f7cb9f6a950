"""Raw instruction files: every row comes out as an instruction or as a rejection with file, line and reason."""

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.instructions.readers import Instruction, Rejected, read_folder
from stages.pipeline.errors import UserError

ROW = {"instruction": "Add.", "input": "1 2", "output": "3", "category": "arithmetic"}


def read(folder: Path, **files: str | bytes) -> list[Instruction | Rejected]:
    """Write files (`a_jsonl` for a.jsonl) and read the folder."""
    for name, content in files.items():
        path = folder / name.replace("_", ".")
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return list(read_folder(folder))


def without(key: str) -> dict[str, str]:
    return {name: value for name, value in ROW.items() if name != key}


def places(rows: list[Instruction | Rejected]) -> list[tuple[str, int]]:
    return [(row.file, row.line) for row in rows]


REJECTED: list[tuple[Any, str]] = [
    (["Add."], "expected an object, got list"),
    ("Add.", "expected an object, got str"),
    (None, "expected an object, got NoneType"),
    (without("instruction"), "'instruction' is missing"),
    (without("output"), "'output' is missing"),
    (ROW | {"instruction": None}, "'instruction' is missing"),
    (ROW | {"output": 3}, "'output' is int, not text"),
    (ROW | {"input": ["1", "2"]}, "'input' is list, not text"),
    (ROW | {"category": False}, "'category' is bool, not text"),
    (ROW | {"instruction": ""}, "'instruction' is empty"),
    (ROW | {"output": " \n\t"}, "'output' is empty"),
    (ROW | {"instruction": "a\ud83d"}, "'instruction' holds half a surrogate pair, which is not text"),
    (ROW | {"input": "\ude00b"}, "'input' holds half a surrogate pair, which is not text"),
    (ROW | {"output": "\ude00\ud83d"}, "'output' holds half a surrogate pair, which is not text"),
    (ROW | {"category": "\ud83d"}, "'category' holds half a surrogate pair, which is not text"),
]


@pytest.mark.parametrize(("row", "reason"), REJECTED)
def test_a_row_that_cannot_be_used_is_rejected_at_its_place(tmp_path: Path, row: Any, reason: str) -> None:
    lines = [json.dumps(ROW), "", json.dumps(row), json.dumps(ROW | {"output": "4"})]
    first, rejected, last = read(tmp_path, a_jsonl="\n".join(lines))
    assert rejected == Rejected("a.jsonl", 3, reason)
    assert [type(first), type(last)] == [Instruction, Instruction]
    assert places([first, last]) == [("a.jsonl", 1), ("a.jsonl", 4)]


def test_a_row_comes_out_whole_and_stripped(tmp_path: Path) -> None:
    row = {"instruction": " Add.\n", "input": "\t1 2", "output": "3 ", "category": " arithmetic ", "more": [1]}
    assert read(tmp_path, a_jsonl=json.dumps(row)) == [Instruction("Add.", "1 2", "3", "arithmetic", "a.jsonl", 1)]


@pytest.mark.parametrize("row", [{}, {"input": None, "category": None}, {"input": "", "category": " "}])
def test_input_and_category_may_be_left_out_null_or_empty(tmp_path: Path, row: dict[str, Any]) -> None:
    rows = read(tmp_path, a_jsonl=json.dumps({"instruction": "Say yes.", "output": "Yes."} | row))
    assert rows == [Instruction("Say yes.", "", "Yes.", None, "a.jsonl", 1)]


def test_a_whole_surrogate_pair_is_text(tmp_path: Path) -> None:
    (row,) = read(tmp_path, a_jsonl='{"instruction": "Smile.", "output": "\\ud83d\\ude00"}')
    assert isinstance(row, Instruction)
    assert row.response == "\U0001f600"


def test_rows_of_an_array_have_the_line_they_begin_on(tmp_path: Path) -> None:
    one = json.dumps(ROW)
    several = json.dumps(ROW | {"output": "a\nb"}, indent=2)  # six lines
    text = f"\n[\n{several},\n\n  {one}, {one},\n{several}\n  , 5\n]\n"
    rows = read(tmp_path, a_json=text)
    assert places(rows) == [("a.json", line) for line in (3, 10, 10, 11, 17)]
    assert text.split("\n")[16] == "  , 5"
    assert rows[-1] == Rejected("a.json", 17, "expected an object, got int")


def test_an_empty_array_holds_no_row(tmp_path: Path) -> None:
    assert read(tmp_path, a_json=" [ \n ] ") == []


def test_a_byte_order_mark_and_windows_line_ends_change_nothing(tmp_path: Path) -> None:
    lines = [json.dumps(ROW), json.dumps(ROW | {"output": "4"}), "", "5"]
    plain = read(tmp_path, a_jsonl="\n".join(lines))
    assert read(tmp_path, a_jsonl=b"\xef\xbb\xbf" + "\r\n".join(lines).encode()) == plain
    (tmp_path / "a.jsonl").unlink()
    array = json.dumps([ROW, ROW | {"output": "4"}], indent=1)
    plain = read(tmp_path, a_json=array)
    assert read(tmp_path, a_json=b"\xef\xbb\xbf" + array.replace("\n", "\r\n").encode()) == plain


def test_other_line_separators_of_unicode_end_no_line(tmp_path: Path) -> None:
    texts = ["a\u2028b", "a\u0085b", "a\u000bb"]
    lines = [json.dumps(ROW | {"output": text}, ensure_ascii=False) for text in texts[:2]]
    rows = read(tmp_path, a_jsonl="\n".join([*lines, json.dumps(ROW | {"output": texts[2]})]))
    assert [row.response for row in rows if isinstance(row, Instruction)] == texts


def test_folders_are_read_in_sorted_order_and_files_for_people_are_not(tmp_path: Path) -> None:
    for name in ("b/z.jsonl", "b/a/x.json", "c.jsonl", "a.json"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"[{json.dumps(ROW)}]" if path.suffix == ".json" else json.dumps(ROW))
    for name in ("README.md", "b/notes.md", ".gitignore", ".DS_Store", ".hidden/broken.json", "b/.half.jsonl"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("{ not data")
    rows = list(read_folder(tmp_path))
    assert places(rows) == [(name, 1) for name in ("a.json", "b/a/x.json", "b/z.jsonl", "c.jsonl")]


@pytest.mark.parametrize("name", ["rows.csv", "rows.txt", "rows", "rows.JSON", "rows.jsonl.gz"])
def test_a_file_of_another_kind_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps(ROW))
    (tmp_path / name).write_text("x")
    with pytest.raises(UserError, match=rf"^{tmp_path}/{name}: cannot read '.*' files; convert"):
        list(read_folder(tmp_path))


def test_a_folder_without_data_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"^{tmp_path}/raw: not found"):
        list(read_folder(tmp_path / "raw"))
    (tmp_path / "README.md").write_text("about")
    with pytest.raises(UserError, match=rf"^{tmp_path}: holds no data"):
        list(read_folder(tmp_path))


ROW_TEXT = json.dumps(ROW)
BROKEN: list[tuple[str, bytes | str, int]] = [
    ("a_jsonl", f"{ROW_TEXT}\n\n{ROW_TEXT[:-1]}\n{ROW_TEXT}", 3),
    ("a_jsonl", f"{ROW_TEXT}{ROW_TEXT}", 1),
    ("a_jsonl", f"{ROW_TEXT}\n" + "[" * 100_000, 2),
    ("a_jsonl", f"{ROW_TEXT}\n" + "9" * 5000, 2),
    ("a_json", f"[\n{ROW_TEXT},\n{ROW_TEXT[:-1]}\n]", 4),
    ("a_json", f"[\n{ROW_TEXT}\n{ROW_TEXT}]", 3),
    ("a_json", f"[\n{ROW_TEXT},\n", 3),
    ("a_json", f"[\n{ROW_TEXT}\n", 3),
    ("a_json", f"\n{ROW_TEXT}", 2),
    ("a_json", "", 1),
    ("a_json", f"[\n{ROW_TEXT},\n" + "[" * 100_000, 3),
    ("a_json", f"[\n{ROW_TEXT},\n{'9' * 5000}]", 3),
    ("a_json", f"[{ROW_TEXT}]\n[{ROW_TEXT}]", 2),
    ("a_json", f"[{ROW_TEXT}]\n\n]", 3),
]


@pytest.mark.parametrize(("name", "content", "line"), BROKEN)
def test_broken_json_is_named_with_its_line(tmp_path: Path, name: str, content: str | bytes, line: int) -> None:
    with pytest.raises(UserError, match=rf"^{tmp_path}/{name.replace('_', '.')}:{line}: .*JSON"):
        read(tmp_path, **{name: content})


def test_text_that_is_not_utf_8_is_named_with_its_byte(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"^{tmp_path}/a\.jsonl: not UTF-8 at byte 18; "):
        read(tmp_path, a_jsonl='{"instruction": "Gr\u00fc\u00df"}'.encode("latin-1").replace(b"Gr", b"G"))


def test_ids_are_hashes_of_the_content_alone() -> None:
    row = Instruction("Add.", "1 2", "3", "arithmetic", "a.jsonl", 1)
    # printf '["Add.", "1 2", "3"]' | sha256sum
    assert row.id == "f4a33ef8209a64d8"
    assert Instruction("Add.", "1 2", "3", None, "b/c.json", 99).id == row.id
    # printf '["Grüße.", "", "你好 😀"]' | sha256sum
    assert Instruction("Gr\u00fc\u00dfe.", "", "\u4f60\u597d \U0001f600", None, "a.jsonl", 1).id == "3bc61384fe54af47"
    others = [("Add", "1 2", "3"), ("Add.", "1 2 3", ""), ("Add.", "", "1 23"), ("1 2", "Add.", "3")]
    assert len({row.id, *(Instruction(*texts, None, "a.jsonl", 1).id for texts in others)}) == 5


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)
ROW_LIKE = st.dictionaries(st.sampled_from([*ROW, "other"]), st.text(max_size=5) | JSON_VALUES)


@given(
    rows=st.lists(JSON_VALUES | ROW_LIKE, max_size=6),
    escaped=st.booleans(),
    indent=st.none() | st.integers(0, 2),
    newline=st.sampled_from(["\n", "\r\n"]),
)
def test_no_row_is_lost_and_none_is_invented(rows: list[Any], escaped: bool, indent: int | None, newline: str) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        array = json.dumps(rows, ensure_ascii=escaped, indent=indent)
        lines = [json.dumps(row, ensure_ascii=escaped) for row in rows]
        (folder / "a.json").write_bytes(array.replace("\n", newline).encode())
        (folder / "b.jsonl").write_bytes(newline.join(lines).encode())
        found = list(read_folder(folder))
    from_array, from_lines = ([row for row in found if row.file == file] for file in ("a.json", "b.jsonl"))
    assert [row.line for row in from_lines] == list(range(1, len(rows) + 1))
    assert [_content(row) for row in from_array] == [_content(row) for row in from_lines]
    assert len(from_array) == len(rows)
    assert [row.line for row in from_array] == sorted(row.line for row in from_array)


def _content(row: Instruction | Rejected) -> str:
    return row.id if isinstance(row, Instruction) else row.reason
