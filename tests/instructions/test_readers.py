"""A folder of raw files: every row comes out, as an instruction or rejected with file, line and reason."""

import csv
import io
import json
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stages.instructions.instruction import Instruction, Rejected, Turn
from stages.instructions.readers import MAX_KEYS, MAX_UNKNOWN
from stages.instructions.schemas import SCHEMAS
from stages.pipeline.errors import UserError
from tests.instructions.raw_data import COMPRESSIONS, SUFFIXES, places, raw_folder, write

ROW = {"instruction": "Add.", "input": "1 2", "output": "3", "category": "arithmetic"}
LINE = json.dumps(ROW)
MESSAGES = [{"role": "user", "content": "Hi!"}, {"role": "assistant", "content": "Hello."}]


def lines(*rows: object) -> str:
    return "\n".join(map(json.dumps, rows))


# ---- a row


def test_a_row_comes_out_whole_with_its_place(tmp_path: Path) -> None:
    write(tmp_path, "deep/a.jsonl", lines(ROW, ROW | {"output": 3}, ROW | {"split": "dev"}))
    assert list(raw_folder(tmp_path).rows()) == [
        Instruction("Add.", "3", "1 2", category="arithmetic", file="deep/a.jsonl", line=1),
        Rejected("deep/a.jsonl", 2, "'output' is int, not text"),
        Instruction("Add.", "3", "1 2", category="arithmetic", split="validation", file="deep/a.jsonl", line=3),
    ]


def test_ids_are_hashes_of_the_content_alone() -> None:
    row = Instruction("Add.", "3", "1 2")
    # printf '["Add.", "1 2", "3"]' | sha256sum
    assert row.id == "f4a33ef8209a64d8"
    assert row._replace(category="arithmetic", split="test", file="b/c.json", line=99).id == row.id
    # printf '["Grüße.", "", "你好 😀"]' | sha256sum
    assert Instruction("Gr\u00fc\u00dfe.", "\u4f60\u597d \U0001f600").id == "3bc61384fe54af47"
    # printf '["Add.", "1 2", "3", "Be brief.", [["Hi!", "Hello."]]]' | sha256sum
    spoken = row._replace(system="Be brief.", history=(Turn("Hi!", "Hello."),))
    assert spoken.id == "8332c2ac2dadc300"
    others = [
        Instruction("Add", "3", "1 2"),
        Instruction("Add.", "", "1 2 3"),
        Instruction("Add.", "1 23"),
        Instruction("1 2", "3", "Add."),
        row._replace(system="Be brief."),
        row._replace(history=(Turn("Hi!", "Hello."),)),
        spoken._replace(history=(Turn("Hi!Hello.", ""),)),
    ]
    assert len({row.id, spoken.id, *(other.id for other in others)}) == 9


# ---- several files and schemas


def test_files_of_every_schema_lie_side_by_side(tmp_path: Path) -> None:
    write(tmp_path, "a.csv.zst", 'prompt,completion,split\n"Hi!","Hello.",test\n')
    write(tmp_path, "b.jsonl.gz", lines({"messages": MESSAGES, "split": "test"}))
    write(tmp_path, "c/d.json", json.dumps([{"conversations": MESSAGES, "split": "test"}]))
    table = pa.Table.from_pylist([{"instruction": "Hi!", "output": "Hello.", "split": "test"}])
    pq.write_table(table, tmp_path / "e.parquet")
    in_csv = io.StringIO()
    csv.writer(in_csv).writerows([["messages", "split"], [json.dumps(MESSAGES), "test"]])
    write(tmp_path, "f.csv", in_csv.getvalue())
    folder = raw_folder(tmp_path, max_rejected_fraction=0)
    rows = list(folder.rows())
    assert places(rows) == [("a.csv.zst", 2), ("b.jsonl.gz", 1), ("c/d.json", 1), ("e.parquet", 1), ("f.csv", 2)]
    texts = {row._replace(file="", line=0) for row in rows if isinstance(row, Instruction)}
    assert texts == {Instruction("Hi!", "Hello.", split="test")}
    found = {name: counts.schema for name, counts in folder.files.items()}
    assert list(found.values()) == ["prompt_completion", "messages", "sharegpt", "alpaca", "messages"]


def test_the_first_row_that_shows_its_schema_decides_for_its_file(tmp_path: Path) -> None:
    write(tmp_path, "a.jsonl", lines(3, {}, ROW, {"messages": MESSAGES}, ROW))
    rows = list(raw_folder(tmp_path).rows())
    reasons = {row.line: row.reason for row in rows if isinstance(row, Rejected)}
    assert reasons == {1: "no known schema", 2: "no known schema", 4: "'instruction' is missing"}
    assert len(rows) == 5


def test_a_schema_that_is_fixed_is_not_recognised(tmp_path: Path) -> None:
    write(tmp_path, "a.jsonl", lines(ROW | {"messages": MESSAGES}, ROW))
    recognised = list(raw_folder(tmp_path).rows())
    fixed = list(raw_folder(tmp_path, row_schema="alpaca").rows())
    assert [type(row) for row in recognised] == [Instruction, Rejected]
    assert [row.instruction for row in fixed if isinstance(row, Instruction)] == ["Add.", "Add."]


@pytest.mark.parametrize("count", [1, 10 * MAX_UNKNOWN])
def test_a_file_of_no_known_schema_is_refused_with_its_keys(tmp_path: Path, count: int) -> None:
    path = write(tmp_path, "a.jsonl", lines(*[{"question": "Add.", "answer": "3", "\ud83d": 0}] * count))
    with pytest.raises(UserError, match=rf"^{path}: no known schema: rows have question, answer, \\ud83d; known are"):
        list(raw_folder(tmp_path).rows())


@pytest.mark.parametrize("value", [3, {}, "text"])
def test_no_row_after_many_of_no_schema_is_passed_over_in_silence(tmp_path: Path, value: object) -> None:
    path = write(tmp_path, "a.jsonl", lines(*[value] * MAX_UNKNOWN, ROW))
    assert len(list(raw_folder(tmp_path).rows())) == MAX_UNKNOWN + 1
    path = write(tmp_path, "a.jsonl", lines(*[value] * MAX_UNKNOWN, value, ROW))
    with pytest.raises(UserError, match=f"^{path}: no known schema: rows have no keys"):
        list(raw_folder(tmp_path).rows())


def test_broken_lines_do_not_hide_a_schema(tmp_path: Path) -> None:
    write(tmp_path, "a.jsonl", "{\n" * 2 * MAX_UNKNOWN + lines(3, ROW))
    rows = list(raw_folder(tmp_path).rows())
    assert isinstance(rows[-1], Instruction)
    assert rows[-1].line == len(rows) == 2 * MAX_UNKNOWN + 2


# ---- columns of other names


def test_columns_can_have_other_names(tmp_path: Path) -> None:
    asked = {"question": "Add.", "answer": "3", "topic": "arithmetic", "output": "not this", "instruction": None}
    write(tmp_path, "a.jsonl", lines(asked))
    write(tmp_path, "b.jsonl", lines(ROW))
    columns = {"instruction": "question", "output": "answer", "category": "topic"}
    folder = raw_folder(tmp_path, columns=columns)
    first, second = folder.rows()
    assert first == Instruction("Add.", "3", category="arithmetic", file="a.jsonl", line=1)
    assert second == Instruction("Add.", "3", "1 2", category="arithmetic", file="b.jsonl", line=1)
    assert folder.files["a.jsonl"].ignored_keys == {}


def test_columns_can_swap_names_and_hold_messages(tmp_path: Path) -> None:
    write(tmp_path, "a.jsonl", lines({"prompt": "Hello.", "completion": "Hi!"}))
    write(tmp_path, "b.jsonl", lines({"chat": MESSAGES}))
    rows = raw_folder(tmp_path, columns={"prompt": "completion", "completion": "prompt", "messages": "chat"}).rows()
    texts = [(row.instruction, row.response) for row in rows if isinstance(row, Instruction)]
    assert texts == [("Hi!", "Hello.")] * 2


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"answer": "output"}, "no field 'answer'; known: category, completion, "),
        ({"output": "anwser"}, "no row of .* has the column 'anwser' named for 'output'"),
        ({"instruction": "text", "output": "text"}, "column 'text' stands for two fields"),
    ],
)
def test_columns_that_cannot_be_are_refused(tmp_path: Path, columns: dict[str, str], message: str) -> None:
    write(tmp_path, "a.jsonl", lines(ROW))
    with pytest.raises(UserError, match=rf"^format\.columns: {message}"):
        list(raw_folder(tmp_path, columns=columns).rows())


def test_a_key_twice_is_rejected_where_columns_have_other_names_too(tmp_path: Path) -> None:
    good = {"question": "Add.", "answer": "3"}
    write(tmp_path, "a.jsonl", '{"question": "Add.", "answer": "3", "answer": "4"}\n' + lines(good))
    folder = raw_folder(tmp_path, columns={"instruction": "question", "output": "answer"})
    first, second = folder.rows()
    assert first == Rejected("a.jsonl", 1, "key twice: 'answer'")
    assert isinstance(second, Instruction)


def test_keys_that_are_not_read_are_counted(tmp_path: Path) -> None:
    write(
        tmp_path,
        "a.jsonl",
        lines(ROW | {"id": 1}, ROW | {"id": 2, "\ud83d" * 99: 3}, ROW | {"system": "", "split": ""}),
    )
    folder = raw_folder(tmp_path)
    assert [type(row) for row in folder.rows()] == [Instruction] * 3
    assert folder.files["a.jsonl"].ignored_keys == {"id": 2, r"\ud83d" * 40 + "...": 1}


def test_rows_that_each_have_keys_of_their_own_do_not_fill_the_figures(tmp_path: Path) -> None:
    write(tmp_path, "a.jsonl", lines(*(ROW | {"id": 1, f"{number}": 1} for number in range(1000))))
    folder = raw_folder(tmp_path)
    assert len(list(folder.rows())) == 1000
    counted = folder.files["a.jsonl"].ignored_keys
    assert (counted["id"], counted["(others)"], counted.total()) == (1000, 1001 - MAX_KEYS, 2000)


# ---- what stops the run


@pytest.mark.parametrize(("rejected", "good", "fraction"), [(29, 71, 0.29), (1, 4, 0.2), (1, 0, 1.0), (0, 1, 0.0)])
def test_as_many_rejected_rows_as_the_fraction_says_are_borne(
    tmp_path: Path, rejected: int, good: int, fraction: float
) -> None:
    write(tmp_path, "a.jsonl", "{\n" * rejected + f"{LINE}\n" * good)
    rows = list(raw_folder(tmp_path, max_rejected_fraction=fraction).rows())
    assert Counter(type(row) for row in rows) == Counter({Rejected: rejected, Instruction: good})


def test_one_more_stops_the_run_even_if_all_other_files_are_good(tmp_path: Path) -> None:
    write(tmp_path, "a.jsonl", f"{LINE}\n" * 1000)
    bad = write(tmp_path, "b.jsonl", f"{LINE}\n" * 3 + "{\n[]\n{\n")
    write(tmp_path, "c.jsonl", f"{LINE}\n" * 1000)
    with pytest.raises(UserError) as raised:
        list(raw_folder(tmp_path, max_rejected_fraction=0.4).rows())
    assert str(raised.value) == (
        f"{bad}: 3 of 6 rows rejected, the first on line 4, most often: broken JSON (2); "
        "mend the file, or raise format.max_rejected_fraction"
    )


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.json", "[ ]"),
        ("a.jsonl", "\n \r\n"),
        ("a.csv", "instruction,output\n"),
        ("a.csv", "\ufeff"),
        ("a.tsv.gz", ""),
    ],
)
def test_a_file_without_a_row_is_refused(tmp_path: Path, name: str, content: str) -> None:
    path = write(tmp_path, name, content)
    with pytest.raises(UserError, match=f"^{path}: holds no row; remove it"):
        list(raw_folder(tmp_path).rows())


# ---- whatever the bytes are

TEXTS = st.text(max_size=5) | st.sampled_from(["Add.", "3", "", " ", "\0", "\ud83d", "user", "assistant", "train"])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=4,
)
KEYS = st.sampled_from(["instruction", "input", "output", "prompt", "completion", "system", "category", "split"])
MESSAGE = st.fixed_dictionaries({"role": TEXTS | VALUES, "content": TEXTS | VALUES}) | st.sampled_from(MESSAGES)
CONVERSATIONS = st.dictionaries(st.sampled_from(["messages", "conversations"]), st.lists(MESSAGE, max_size=4))
ROWS = st.dictionaries(KEYS | TEXTS, TEXTS | VALUES, max_size=5) | CONVERSATIONS | st.just(ROW) | VALUES


def encoded(rows: list[Any], suffix: str) -> bytes:
    """Rows as a file of this kind holds them, or, of what it cannot hold, something near."""
    if suffix == ".json":
        return json.dumps(rows, indent=1).encode()
    if suffix in (".jsonl", ".ndjson"):
        return "\n".join(map(json.dumps, rows)).encode()
    tables = [row if isinstance(row, dict) else {"instruction": row} for row in rows]
    texts = [
        {key: value if isinstance(value, str) else json.dumps(value) for key, value in row.items()} for row in tables
    ]
    if suffix == ".parquet":
        sink = io.BytesIO()
        clean = [{_utf8(key): _utf8(text) for key, text in row.items()} for row in texts]
        pq.write_table(pa.Table.from_pylist([row or {"output": ""} for row in clean]), sink)
        return sink.getvalue()
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, sorted({key for row in texts for key in row}), delimiter=",\t"[suffix == ".tsv"])
    writer.writeheader()
    writer.writerows(texts)
    return out.getvalue().encode(errors="surrogatepass")


def _utf8(text: str) -> str:
    return text.encode(errors="replace").decode()


@st.composite
def damaged(draw: st.DrawFn, suffix: str) -> bytes:
    """A file as it should be, then cut, bytes changed, or parts of another put in."""
    content = encoded(draw(st.lists(ROWS, min_size=1, max_size=5)), suffix)
    for _ in range(draw(st.integers(0, 3))):
        # Also from the end: there Parquet has what the rest is read by.
        at = draw(st.integers(0, len(content)) | st.integers(1, 60).map(lambda back: max(0, len(content) - back)))  # noqa: B023
        kind = draw(st.sampled_from(["cut", "flip", "put"]))
        if kind == "cut":
            content = content[:at]
        elif kind == "flip" and at < len(content):
            content = content[:at] + bytes([content[at] ^ draw(st.integers(1, 255))]) + content[at + 1 :]
        else:
            other = st.binary(max_size=8) | st.just(encoded([ROW], ".json")) | st.just(b"\r\n\xff\xfe\"'[,")
            content = content[:at] + draw(other) + content[at + draw(st.integers(0, 8)) :]
    return content


def check_rows(name: str, content: Callable[[Path], object], schema: str) -> None:
    """Read a file: it gives rows and rejects that can be written, and counts them all; or the one error."""
    with tempfile.TemporaryDirectory() as place:
        content(Path(place) / name)
        folder = raw_folder(Path(place), row_schema=schema)
        rows: list[Instruction | Rejected] = []
        try:
            rows.extend(folder.rows())
        except UserError as error:
            assert str(error).startswith(f"{place}/{name}")  # noqa: PT017
            assert len(str(error)) < 5000  # noqa: PT017
            return
    counts = folder.files[name]
    assert (counts.rows, counts.rejected) == (len(rows), sum(isinstance(row, Rejected) for row in rows))
    assert [row.line for row in rows] == sorted(row.line for row in rows)
    json.dumps(counts.ignored_keys, ensure_ascii=False).encode()
    for row in rows:
        json.dumps(row, ensure_ascii=False).encode()
        if isinstance(row, Instruction):
            assert row.instruction.strip()
            assert row.response.strip()
            assert len(row.id) == 16
        else:
            assert 0 < len(row.reason) < 500
            assert len(row.kind) < 80


SCHEMA_NAMES = st.sampled_from(["auto", *SCHEMAS])


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@pytest.mark.parametrize("suffix", [*SUFFIXES, ".parquet"])
@given(data=st.data(), schema=SCHEMA_NAMES)
def test_any_bytes_give_rows_or_rejects_or_the_one_error(suffix: str, data: st.DataObject, schema: str) -> None:
    content = data.draw(damaged(suffix) | st.binary(max_size=100))
    compression = data.draw(st.sampled_from(COMPRESSIONS if suffix != ".parquet" else ("",)))
    check_rows(f"a{suffix}{compression}", lambda path: write(path.parent, path.name, content), schema)


@settings(max_examples=100, deadline=None)
@pytest.mark.parametrize("compression", [".gz", ".zst"])
@given(data=st.data(), rows=st.lists(ROWS, max_size=5))
def test_a_damaged_compression_is_no_other_matter(compression: str, data: st.DataObject, rows: list[Any]) -> None:
    with tempfile.TemporaryDirectory() as place:
        whole = write(Path(place), f"a.jsonl{compression}", encoded(rows, ".jsonl")).read_bytes()
    at = data.draw(st.integers(0, len(whole)))
    broken = whole[:at] + data.draw(st.binary(max_size=3)) + whole[at + data.draw(st.integers(0, 3)) :]
    check_rows(f"a.jsonl{compression}", lambda path: path.write_bytes(broken), "auto")


LINES = (
    ROWS.map(json.dumps)
    | st.text().map(lambda text: "".join(text.splitlines()))
    | st.sampled_from(["", " ", "{", LINE])
)


@settings(deadline=None)
@given(texts=st.lists(LINES, max_size=8), newline=st.sampled_from([b"\n", b"\r\n"]), schema=st.sampled_from([*SCHEMAS]))
def test_no_line_vanishes_and_none_is_invented(texts: list[str], newline: bytes, schema: str) -> None:
    content = [LINE.encode(), *(text.encode(errors="surrogatepass") for text in texts)]
    with tempfile.TemporaryDirectory() as place:
        write(Path(place), "a.jsonl", newline.join(content))
        rows = list(raw_folder(Path(place), row_schema=schema).rows())
    assert [row.line for row in rows] == [number for number, line in enumerate(content, start=1) if line.strip()]


@settings(deadline=None)
@given(rows=st.lists(ROWS, min_size=1, max_size=6), schema=st.sampled_from([*SCHEMAS]))
def test_lines_and_an_array_say_the_same(rows: list[Any], schema: str) -> None:
    with tempfile.TemporaryDirectory() as place:
        write(Path(place), "a.json", encoded(rows, ".json"))
        write(Path(place), "b.jsonl.gz", encoded(rows, ".jsonl"))
        found = list(raw_folder(Path(place), row_schema=schema).rows())
    alike = [row._replace(file="", line=0) for row in found]
    assert len(alike) == 2 * len(rows)
    assert alike[: len(rows)] == alike[len(rows) :]
