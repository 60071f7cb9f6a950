"""Records on disk: whole or not at all, the same bytes for the same content, and damage is named."""

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from stages.pipeline.errors import UserError
from stages.pipeline.files import (
    Row,
    read_about,
    read_json,
    read_parquet,
    replacing,
    replacing_folder,
    write_json,
    write_jsonl,
    write_parquet,
)

SCHEMA = pa.schema([pa.field("id", pa.string(), nullable=False), pa.field("line", pa.int64())])
ROWS: list[Row] = [{"id": f"row {i} \u4f60\u597d", "line": i} for i in range(1000)]


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def interrupted(path: Path, error: type[BaseException]) -> None:
    path.write_text("half")
    raise error


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file"
    for text in ("first", "second"):
        with replacing(path) as temporary:
            temporary.write_text(text)
        assert path.read_text() == text
        assert names(tmp_path) == ["new", "new/file"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_exception_keeps_the_old_file(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(error), replacing(path) as temporary:
        interrupted(temporary, error)
    assert path.read_text() == "old"
    assert names(tmp_path) == ["file"]


def test_an_exception_before_anything_is_written_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="early"), replacing(tmp_path / "file"):
        raise ValueError("early")
    assert names(tmp_path) == []


def test_a_folder_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder"
    for name in ("first", "second"):
        with replacing_folder(path) as temporary:
            assert names(temporary) == []
            (temporary / name).write_text(name)
        assert names(tmp_path) == ["new", "new/folder", f"new/folder/{name}"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_exception_keeps_the_old_folder(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "folder"
    path.mkdir()
    (path / "old").write_text("old")
    with pytest.raises(error), replacing_folder(path) as temporary:
        interrupted(temporary / "half", error)
    assert names(tmp_path) == ["folder", "folder/old"]


def test_what_cannot_be_written_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "metrics.json"
    write_json(path, {"loss": 1.5})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"loss": float("nan")})
    assert read_json(path) == {"loss": 1.5}
    assert names(tmp_path) == ["metrics.json"]


def test_rows_that_do_not_fit_the_schema_leave_nothing(tmp_path: Path) -> None:
    with pytest.raises(pa.ArrowInvalid):
        write_parquet(tmp_path / "rows.parquet", [{"id": "a", "line": "not a number"}], SCHEMA)
    assert names(tmp_path) == []


def test_the_same_rows_give_the_same_bytes(tmp_path: Path) -> None:
    first, second = tmp_path / "first.parquet", tmp_path / "second.parquet"
    write_parquet(first, ROWS, SCHEMA, about={"a": 1, "b": 2})
    write_parquet(second, ROWS, SCHEMA, about={"b": 2, "a": 1})
    assert first.read_bytes() == second.read_bytes()
    assert read_parquet(first) == ROWS
    assert read_about(first) == {"a": 1, "b": 2}


def test_other_rows_give_other_bytes(tmp_path: Path) -> None:
    first, second = tmp_path / "first.parquet", tmp_path / "second.parquet"
    write_parquet(first, ROWS, SCHEMA)
    write_parquet(second, ROWS[::-1], SCHEMA)
    assert first.read_bytes() != second.read_bytes()
    assert read_parquet(second) == ROWS[::-1]
    assert read_about(first) == {}


def test_text_is_written_as_itself(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"z": "\u4f60", "a": [1]})
    write_jsonl(tmp_path / "a.jsonl", [{"reason": "\u4f60\n"}, {}])
    assert (tmp_path / "a.json").read_bytes().decode() == '{\n  "z": "\u4f60",\n  "a": [\n    1\n  ]\n}\n'
    assert (tmp_path / "a.jsonl").read_bytes().decode() == '{"reason": "\u4f60\\n"}\n{}\n'


def test_a_missing_file_says_how_to_make_it(tmp_path: Path) -> None:
    path = tmp_path / "gone"
    for read in (read_json, read_parquet, read_about):
        with pytest.raises(UserError, match=rf"^{path}: not found; run `dvc repro` to make it$"):
            read(path)


@pytest.mark.parametrize("content", [b"", b'{"a": 1', b"\xff\xfe", b"<html>"])
def test_damaged_json_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"^{path}: not valid JSON .*; delete it and run `dvc repro`$"):
        read_json(path)


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda whole: b"", id="empty"),
        pytest.param(lambda whole: b"not parquet at all", id="another kind of file"),
        pytest.param(lambda whole: whole[: len(whole) // 2], id="cut"),
        pytest.param(lambda whole: whole[:-8] + b"\xff\xff\xff\0PAR1", id="footer"),
        pytest.param(lambda whole: whole[:4] + b"\xff" * 40 + whole[44:], id="page header"),
        pytest.param(lambda whole: whole[:100] + b"\xff" * 2000 + whole[2100:], id="page"),
    ],
)
def test_damage_anywhere_in_a_parquet_file_is_named(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    path = tmp_path / "rows.parquet"
    write_parquet(path, ROWS, SCHEMA)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match=rf"^{path}: damaged; delete it and run `dvc repro`$"):
        read_parquet(path)
