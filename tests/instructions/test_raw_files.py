"""Raw files: each value with the line it stands on, whatever the format; damage is told in one line."""

import csv
import io
import json
import os
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from stages.instructions import raw_files
from stages.instructions.raw_files import RepeatedKeys, Value, find_files, read_values
from stages.pipeline.errors import UserError, one_line_errors
from tests.instructions.raw_data import COMPRESSIONS, SUFFIXES, compressed, write

ROW = {"instruction": "Add.", "output": "3"}
LINE = json.dumps(ROW)


# ---- every format, plain and compressed

# Two rows with whatever is awkward in one format or another, the second far enough down to tell its line.
ROWS = [
    {"instruction": 'Say "a,b;c|d\te"\nthen é 你好 😀', "output": "x\u2028y\u0085z"},
    {"instruction": "Add.", "output": " 3\r\n"},
]
IN_CSV = 'instruction{0}output\n"Say ""a,b;c|d\te""\nthen é 你好 😀"{0}"x\u2028y\u0085z"\n\n"Add."{0}" 3\r\n"\n'
PRETTY = json.dumps(ROWS, indent=2, ensure_ascii=False)  # "[", then rows of four lines
ON_LINES = "\n".join([json.dumps(ROWS[0], ensure_ascii=False), "", json.dumps(ROWS[1])])
CONTENTS = [
    (".jsonl", ON_LINES, [1, 3]),
    (".ndjson", ON_LINES.replace("\n", "\r\n") + "\r\n", [1, 3]),
    (".json", ON_LINES, [1, 3]),
    (".json", PRETTY, [2, 6]),
    (".json", f"\n{json.dumps(ROWS)}\n", [2, 2]),
    (".csv", IN_CSV.format(","), [2, 5]),
    (".csv", IN_CSV.format(";"), [2, 5]),
    (".csv", IN_CSV.format("|"), [2, 5]),
    (".csv", IN_CSV.format("\t"), [2, 5]),
    (".tsv", IN_CSV.format("\t"), [2, 5]),
]


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("mark", ["", "\ufeff"], ids=["plain", "byte-order-mark"])
@pytest.mark.parametrize(("suffix", "content", "lines"), CONTENTS)
def test_every_format_gives_the_same_rows_with_their_lines(
    tmp_path: Path, suffix: str, content: str, lines: list[int], mark: str, compression: str
) -> None:
    path = write(tmp_path, f"rows{suffix}{compression}", mark + content)
    assert list(read_values(path)) == [Value(line, row) for line, row in zip(lines, ROWS, strict=True)]


def test_rows_of_parquet_are_numbered(tmp_path: Path) -> None:
    rows = [ROWS[0] | {"messages": [{"role": "user", "content": None}]}] * 2500
    # Row groups and the reader's batches end at different rows.
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet", row_group_size=700)
    assert list(read_values(tmp_path / "rows.parquet")) == [Value(n, row) for n, row in enumerate(rows, start=1)]


def test_suffixes_in_capitals_are_the_same(tmp_path: Path) -> None:
    content = compressed(LINE.encode(), "a.gz")
    (tmp_path / "ROWS.JSONL.GZ").write_bytes(content)
    assert [list(read_values(path)) for path in find_files(tmp_path)] == [[Value(1, ROW)]]


def test_a_field_of_ten_megabytes_comes_out_whole(tmp_path: Path) -> None:
    row = {"instruction": "a\n\u00e9" * 2_500_000, "output": "3"}
    write(tmp_path, "a.jsonl", json.dumps(row))
    write(tmp_path, "b.json", json.dumps([row, ROW], ensure_ascii=False))
    text = io.StringIO()
    csv.writer(text).writerows([row, row.values()])
    write(tmp_path, "c.csv.gz", text.getvalue())
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "d.parquet")
    assert [next(read_values(path)).value == row for path in find_files(tmp_path)] == [True] * 4


# ---- the array of JSON that is read as a stream

JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)
SPACE = st.text(" \t\r\n", max_size=3)
BLOCKS = st.integers(1, 40) | st.just(raw_files.BLOCK)


def read_array(text: str, block: int) -> list[Value]:
    """Through a file, so many bytes at a time."""
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(raw_files, "BLOCK", block)
        path = write(Path(folder), "a.json", text)
        return list(read_values(path))


@st.composite
def arrays(draw: st.DrawFn) -> tuple[str, list[int]]:
    """An array as text, and the line of each item."""
    text, lines = "[" + draw(SPACE), []
    for at, item in enumerate(draw(st.lists(JSON_VALUES, max_size=6))):
        text += f"{',' if at else ''}{draw(SPACE)}"
        lines.append(1 + text.count("\n"))
        text += json.dumps(item, ensure_ascii=draw(st.booleans()), indent=draw(st.none() | st.integers(0, 2)))
        text += draw(SPACE)
    return f"{text}]{draw(SPACE)}", lines


def same(values: list[Value], items: list[Any]) -> bool:
    """Whether the values are these; as text, since 1 == 1.0 == True."""
    return json.dumps([value.value for value in values]) == json.dumps(items)


@settings(deadline=None)
@given(array=arrays(), block=BLOCKS)
def test_an_array_is_what_json_makes_of_it_whatever_the_block(array: tuple[str, list[int]], block: int) -> None:
    text, lines = array
    values = read_array(text, block)
    assert same(values, json.loads(text))
    assert [value.line for value in values] == lines


@settings(max_examples=300, deadline=None)
@given(
    array=arrays(),
    at=st.integers(0, 200),
    cut=st.integers(0, 3),
    put=st.text('[]{},:"\\ \n\u00a0\u20281-+.eEtrue', max_size=3),
    block=BLOCKS,
)
@example(array=("[1e+5, 2.5]", []), at=99, cut=0, put="", block=1)
@example(array=("[1e+5, 2.5]", []), at=99, cut=0, put="", block=2)
@example(array=("[1.]", []), at=99, cut=0, put="", block=1)
@example(array=("[-Infinity]", []), at=99, cut=0, put="", block=2)
def test_an_array_is_refused_where_json_refuses_it(
    array: tuple[str, list[int]], at: int, cut: int, put: str, block: int
) -> None:
    text = "[" + array[0][1:at] + put + array[0][max(1, at) + cut :]
    try:
        items = json.loads(text)
    except ValueError:
        with pytest.raises(UserError, match=r"a\.json:\d+: broken JSON: .*; mend the file$"):
            read_array(text, block)
    else:
        assert same(read_array(text, block), items)


BROKEN_ARRAYS = [
    (f"[\n{LINE},\n{LINE[:-1]}\n]", 4),
    (f"[\n{LINE}\n{LINE}]", 3),
    (f"[\n{LINE},\n", 3),
    (f"[\n{LINE}\n", 3),
    (f"[\n{LINE},\n]", 3),
    (f"[\n{LINE},\n" + "[" * 100_000, 3),
    (f"[\n{LINE},\n{'9' * 5000}]", 3),
    (f"[{LINE}]\n[{LINE}]", 2),
    (f"[{LINE}]\n\n]", 3),
]


@pytest.mark.parametrize(("text", "line"), BROKEN_ARRAYS)
@pytest.mark.parametrize("block", [1, 16, raw_files.BLOCK])
def test_a_broken_array_is_named_with_its_line(text: str, line: int, block: int) -> None:
    with pytest.raises(UserError, match=rf"a\.json:{line}: broken JSON: "):
        read_array(text, block)


def test_rows_before_the_break_come_out(tmp_path: Path) -> None:
    path = write(tmp_path, "a.json", f"[{LINE}, {LINE}")
    values = read_values(path)
    assert [next(values), next(values)] == [Value(1, ROW)] * 2


# ---- lines of JSON


@pytest.mark.parametrize(
    ("line", "broken"),
    [
        (LINE[:-2].encode(), "broken JSON: Unterminated string starting at"),
        (f"{LINE}{LINE}".encode(), "broken JSON: Extra data"),
        (b"[" * 100_000, "broken JSON: nested too deeply"),
        (b'{"a": ' * 100_000, "broken JSON: nested too deeply"),
        (b"9" * 5000, "broken JSON: Exceeds the limit"),
        (b'{"a": "\0"}', "broken JSON: Invalid control character"),
        ("\ufeff{}".encode(), "broken JSON: Expecting value"),
        ("Grüße".encode("latin-1"), "not UTF-8: byte 3 of the line"),
        (b'"\xed\xa0\xbd"', "not UTF-8: byte 2 of the line"),
    ],
)
def test_a_broken_line_is_one_value_and_the_next_is_read(tmp_path: Path, line: bytes, broken: str) -> None:
    path = write(tmp_path, "a.jsonl", b"\n".join([LINE.encode(), b" ", line, LINE.encode()]))
    first, middle, last = read_values(path)
    assert (first, last) == (Value(1, ROW), Value(4, ROW))
    assert (middle.line, middle.value) == (3, None)
    assert middle.broken.startswith(broken)


def test_an_object_with_a_key_twice_says_which_at_any_depth(tmp_path: Path) -> None:
    path = write(tmp_path, "a.jsonl", '{"a": 1, "b": 1, "b": 2}\n{"a": {"c": 1, "c": 1}}\n{"a": {"c": 1}, "c": 1}')
    rows = [value.value for value in read_values(path)]
    assert [type(row) for row in rows] == [RepeatedKeys, dict, dict]
    assert (rows[0].repeated, rows[1]["a"].repeated) == ("b", "c")


def test_an_object_of_many_keys_is_searched_for_the_repeated_one_in_no_time(tmp_path: Path) -> None:
    # Comparing every key with every other takes minutes.
    keys = ", ".join(f'"{number}": 0' for number in [*range(100_000), 99_999])
    (value,) = read_values(write(tmp_path, "a.jsonl", f"{{{keys}}}"))
    assert value.value.repeated == "99999"


# ---- CSV


@settings(deadline=None)
@given(
    rows=st.lists(st.tuples(st.text(), st.text()), max_size=5),
    delimiter=st.sampled_from(",;|\t"),
    newline=st.sampled_from(["\n", "\r\n"]),
)
def test_csv_comes_back_as_it_was_written(rows: list[tuple[str, str]], delimiter: str, newline: str) -> None:
    text, expected = io.StringIO(newline=""), []
    writer = csv.writer(text, delimiter=delimiter, lineterminator=newline, quoting=csv.QUOTE_ALL)
    writer.writerow(["one", "two"])
    for row in rows:
        line = len(io.StringIO(text.getvalue(), newline=None).readlines()) + 1
        expected.append(Value(line, dict(zip(("one", "two"), row, strict=True))))
        writer.writerow(row)
    with tempfile.TemporaryDirectory() as folder:
        assert list(read_values(write(Path(folder), "a.csv", text.getvalue()))) == expected


def test_the_index_that_pandas_writes_has_a_name(tmp_path: Path) -> None:
    path = write(tmp_path, "a.csv", pd.DataFrame({"one": ["1"], "two": ["2"]}).to_csv())
    assert list(read_values(path)) == [Value(2, {"(index)": "0", "one": "1", "two": "2"})]


def test_a_row_with_another_number_of_fields_is_broken_alone(tmp_path: Path) -> None:
    path = write(tmp_path, "a.csv", "one,two\n1,2\n1\n1,2,3\n\n1,2\n")
    assert list(read_values(path)) == [
        Value(2, {"one": "1", "two": "2"}),
        Value(3, None, "wrong number of fields: 1 where the header has 2"),
        Value(4, None, "wrong number of fields: 3 where the header has 2"),
        Value(6, {"one": "1", "two": "2"}),
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"one,one\n1,2\n", ":1: a column has no name or that of another"),
        (b"one,,two\n1,2,3\n", ":1: a column has no name"),
        (b"\n1,2\n", ":1: a column has no name"),
        (b'"one,two\n1,2\n', ":1: broken CSV: "),
        (b'one,two\n1,2\n1,"2\n3,4\n', ":3: broken CSV: unexpected end of data, in the row that begins here"),
        (b'one,two\n\n"1" ,2\n', ":3: broken CSV: "),
        (b"one,tw\xff\n1,2\n", ": not UTF-8 on line 1 or after it"),
        (b"one,two\n" + b"1,2\n" * 9000 + b"1,\xff\n", ": not UTF-8 on line [1-9][0-9]{3} or after it"),
    ],
)
def test_broken_csv_is_named_with_its_line(tmp_path: Path, content: bytes, message: str) -> None:
    path = write(tmp_path, "a.csv", content)
    with pytest.raises(UserError, match=f"^{path}{message}"):
        list(read_values(path))


# ---- Parquet


def parquet(folder: Path, column: pa.Array, name: str = "other") -> Path:
    table = pa.Table.from_arrays([pa.array(["Add."]), column], names=["instruction", name])
    pq.write_table(table, folder / "a.parquet")
    return folder / "a.parquet"


LATIN = pa.Array.from_buffers(pa.string(), 1, pa.array([b"Gr\xfc\xdfe"]).buffers())


@pytest.mark.parametrize(
    ("column", "name", "message"),
    [
        (pa.array(["Go."]), "instruction", "two columns 'instruction'; rename one"),
        (LATIN, "output", "not UTF-8 in one of the 1000 rows after 0; convert the file"),
        (pa.array([2**62], pa.timestamp("us")), "at", r"a value that Python has no form for \(date"),
        (pa.array([2**30], pa.date32()), "at", r"a value that Python has no form for \(days"),
        (pa.StructArray.from_arrays([LATIN, LATIN], names=["a", "a"]), "s", "a value that Python has no form for"),
    ],
)
def test_parquet_that_python_cannot_hold_is_refused(tmp_path: Path, column: pa.Array, name: str, message: str) -> None:
    path = parquet(tmp_path, column, name)
    with pytest.raises(UserError, match=f"^{path}: {message}"):
        list(read_values(path))


def test_parquet_whose_checksum_fails_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    table = pa.table({"instruction": ["find this text"] * 50, "output": ["3"] * 50})
    pq.write_table(
        table, path, compression="none", use_dictionary=False, write_statistics=False, write_page_checksum=True
    )
    path.write_bytes(path.read_bytes().replace(b"find this text", b"find that text", 1))
    with pytest.raises(UserError, match=f"^{path}: damaged or cut short .*; fetch the file again$"):
        list(read_values(path))


# ---- damage


@pytest.mark.parametrize("suffix", [*SUFFIXES, ".parquet"])
def test_an_empty_file_is_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    path.touch()
    with pytest.raises(UserError, match=f"^{path}: empty; remove it"):
        list(read_values(path))


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst", "a.json.gz", "a.csv.zst", "a.parquet"])
@pytest.mark.parametrize("damage", ["half", "none of it"])
def test_a_file_cut_in_half_or_of_another_kind_is_damaged(tmp_path: Path, name: str, damage: str) -> None:
    text = "\n".join(json.dumps({"instruction": f"{number**9}", "output": "3"}) for number in range(9000))
    path = write(tmp_path, name, f"[{text}".encode() if ".json." in name else text.encode())
    if name == "a.parquet":
        pq.write_table(pa.Table.from_pylist([ROW] * 9000), path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2] if damage == "half" else b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(UserError, match=f"^{path}: damaged or cut short .*; fetch the file again$"):
        list(read_values(path))


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_utf_16_is_refused_by_name(tmp_path: Path, suffix: str, encoding: str) -> None:
    path = write(tmp_path, f"a{suffix}", f"\ufeff[{LINE}]".encode(encoding))
    with pytest.raises(UserError, match=f"^{path}: UTF-16; convert the file to UTF-8"):
        list(read_values(path))


@pytest.mark.parametrize("block", [16, raw_files.BLOCK])
def test_an_array_that_is_not_utf_8_is_named_with_its_byte(
    tmp_path: Path, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(raw_files, "BLOCK", block)
    path = write(tmp_path, "a.json", f"[{LINE}, ".encode() + "[ü]".encode("latin-1"))
    with pytest.raises(UserError, match=f"^{path}: not UTF-8 near byte {len(LINE) + 5}; convert"):
        list(read_values(path))


def test_an_unreadable_file_or_folder_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(path: object, *args: object, **kwargs: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    path = write(tmp_path, "a.jsonl", LINE)
    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(SystemExit), one_line_errors():
        find_files(tmp_path)
    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(SystemExit), one_line_errors():
        list(read_values(path))
    assert capsys.readouterr().err == f"error: {tmp_path}: permission denied\nerror: {path}: permission denied\n"


# ---- what is in the folder


def test_folders_are_read_in_sorted_order_and_files_for_people_are_not(tmp_path: Path) -> None:
    data = ["a.json", "b/a/x.csv.gz", "b/z.parquet", "c.jsonl"]
    for name in [*reversed(data), "README.md", "b/a.jsonl.dvc", ".gitignore", ".hidden/broken.json", "b/.half.jsonl"]:
        write(tmp_path, name, "x")
    assert [path.relative_to(tmp_path).as_posix() for path in find_files(tmp_path)] == data


@pytest.mark.parametrize(
    "name", ["a.txt", "a", "a.jsonl.bz2", "a.gz", "a.txt.gz", "a.parquet.gz", "a.jsonl~", "LICENSE", "a.xlsx"]
)
def test_a_file_of_another_kind_is_refused(tmp_path: Path, name: str) -> None:
    write(tmp_path, "b.jsonl", LINE)
    path = write(tmp_path, name, "x")
    with pytest.raises(UserError, match=rf"^{path}: cannot read '.*' files; convert to \.json, "):
        find_files(tmp_path)


def test_a_folder_without_data_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"^{tmp_path}/raw: not found"):
        find_files(tmp_path / "raw")
    write(tmp_path, "README.md", "about")
    (tmp_path / "empty.jsonl").mkdir()
    with pytest.raises(UserError, match=f"^{tmp_path}: holds no data"):
        find_files(tmp_path)


def _link_to_itself(folder: Path) -> Path:
    (folder / "loop.jsonl").symlink_to("loop.jsonl")
    return folder / "loop.jsonl"


def _link_to_its_folder(folder: Path) -> Path:
    (folder / "deep").mkdir()
    (folder / "deep/loop").symlink_to(folder)
    return folder / "deep/loop"


def _links_to_each_other(folder: Path) -> Path:
    for one, other in ("ab", "ba"):
        (folder / one).mkdir()
        (folder / one / "link").symlink_to(folder / other)
    return folder


def _pipe(folder: Path) -> Path:
    os.mkfifo(folder / "a.jsonl")
    return folder / "a.jsonl"


def _socket(folder: Path) -> Path:
    with socket.socket(socket.AF_UNIX) as made, pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)  # a socket's name may not be long
        made.bind("a.jsonl")
    return folder / "a.jsonl"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (_link_to_itself, ": a link that leads nowhere; remove it"),
        (_link_to_its_folder, ": a link to a folder that contains it; remove the link"),
        (_links_to_each_other, "/./link/link: a link to a folder that contains it; remove the link"),
        (_pipe, ": not a regular file; remove it"),
        (_socket, ": not a regular file; remove it"),
    ],
)
def test_links_in_a_circle_and_what_is_no_file_are_refused(
    tmp_path: Path, make: Callable[[Path], Path], message: str
) -> None:
    write(tmp_path, "good.jsonl", LINE)
    path = make(tmp_path)
    with pytest.raises(UserError, match=f"^{path}{message}$"):
        find_files(tmp_path)


def test_links_that_lead_to_data_are_followed(tmp_path: Path) -> None:
    write(tmp_path, "elsewhere/a.jsonl", LINE)
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw/file.jsonl").symlink_to(tmp_path / "elsewhere/a.jsonl")
    (tmp_path / "raw/folder").symlink_to(tmp_path / "elsewhere")
    assert [path.name for path in find_files(tmp_path / "raw")] == ["file.jsonl", "a.jsonl"]


def test_a_name_that_is_not_utf_8_is_refused(tmp_path: Path) -> None:
    try:
        (tmp_path / os.fsdecode(b"a\xff.jsonl")).write_text(LINE)
    except OSError:
        pytest.skip("the file system takes no such name")
    with pytest.raises(UserError, match="a name that is not UTF-8; rename the file"):
        find_files(tmp_path)
