"""Rows that overlap a benchmark: which are found, in files as publishers have them, and which are left alone."""

import gzip
import io
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from pydoc_data.topics import topics

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.instructions.benchmark_overlap import find_overlaps
from stages.instructions.duplicates import normalize
from stages.instructions.instruction import Instruction, Turn
from stages.pipeline.errors import UserError
from tests.conftest import ROOT
from tests.instructions.naive import jaccard
from tests.pipeline.test_bad_input import Project

LONG = "A farmer keeps 17 hens, each of which lays five eggs a week; how many dozens does he sell in June?"
SHORT = 'Which "metal" is liquid at 20 degrees?'
OTHER = "The committee met on Tuesday and agreed to put off the question of the new bridge until the autumn."
ROWS = [
    Instruction("Solve this. " + LONG.upper().replace(",", " -"), "112."),
    Instruction("which metal is liquid at 20 degrees", "Mercury."),
    Instruction("Name a bird.", "A wren."),
]
"""One row of each test, and one that nothing should find."""


def overlaps(folder: Path, content: str | bytes, rows: Sequence[Instruction], name: str = "quiz/test.json") -> set[int]:
    """Positions of the rows that overlap a benchmark of one file, each of which must name that file."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    found = find_overlaps(rows, folder, [name.split("/")[0]])
    assert all(reason.endswith(name) for reason in found.values())
    return set(found)


# ---- files as publishers have them


def csv_row(*cells: str) -> str:
    return ",".join('"{}"'.format(cell.replace('"', '""')) for cell in cells) + "\n"


def parquet(*rows: dict[str, object]) -> bytes:
    stream = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(list(rows)), stream)
    return stream.getvalue()


def zstd(text: str) -> bytes:
    return bytes(pa.compress(text.encode(), codec="zstd", asbytes=True))


SQUAD = {"version": "1.1", "data": [{"title": "Hens", "paragraphs": [{"context": LONG, "qas": [{"question": SHORT}]}]}]}
LINES = f"{json.dumps({'task_id': 'a/0', 'prompt': LONG})}\n\n{json.dumps({'task_id': 'a/1', 'prompt': SHORT})}\n"
PUBLISHED: dict[str, str | bytes] = {
    # MMLU: no header, the answer's letter at the end.
    "mmlu/test/farming_test.csv": csv_row(LONG, "10", "20", "30", "40", "A") + csv_row(SHORT, "iron", "mercury", "B"),
    "mmlu/a_field_beyond_csv_s_own_limit.csv": csv_row("word " * 40_000, LONG, SHORT),
    "mmlu/a_field_with_a_line_separator_of_unicode.csv": f"{LONG.replace(' eggs', chr(0x2028) + 'eggs')};a\n{SHORT}\n",
    # GLUE: quotes that close nothing, Windows line ends.
    "glue/QNLI/dev.tsv": f'index\tquestion\tsentence\r\n0\t"A stray quote\t{LONG}\r\n1\t{SHORT}\tMercury is.\r\n',
    "squad/dev-v1.1.json": json.dumps(SQUAD, indent=1),
    "humaneval/HumanEval.jsonl.gz": gzip.compress(LINES.encode()),
    "boolq/val.jsonl.zst": zstd(LINES),
    "boolq/val.ndjson": b"\xef\xbb\xbf" + LINES.replace("\n", "\r\n").encode(),
    "piqa/lines_under_another_name.json": LINES,
    "arc/easy/test-00000-of-00001.parquet": parquet(
        {"id": 1, "question": LONG, "choices": {"text": ["a", "b"], "label": ["A", "B"]}, "image": b"\x00\xff"},
        {"id": 2, "question": None, "choices": {"text": [SHORT, "b"], "label": ["A", "B"]}, "image": None},
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_both_tests_find_a_text_in_every_published_shape(tmp_path: Path, name: str) -> None:
    assert overlaps(tmp_path, PUBLISHED[name], ROWS, name) == {0, 1}


@pytest.mark.parametrize("name", ["LICENSE", "README.md", "run.py", "test.txt", "._test.csv", ".hidden.json"])
def test_files_that_are_no_data_are_left_alone(tmp_path: Path, name: str) -> None:
    path = tmp_path / "quiz" / name
    path.parent.mkdir()
    path.write_bytes(b"\x00\xff" if name == "._test.csv" else f'["{LONG}"]'.encode())
    assert overlaps(tmp_path, json.dumps([SHORT]), ROWS) == {1}


def test_the_file_that_is_named_is_the_one_that_holds_the_text(tmp_path: Path) -> None:
    for name, text in [("a/test.json", OTHER), ("b/1.json", LONG), ("b/2.json", SHORT), ("c/test.json", LONG)]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(json.dumps([text]))
    assert find_overlaps(ROWS, tmp_path, ["a", "b"]) == {
        0: "13 words in common with b/1.json",
        1: "near-duplicate of a text in b/2.json",
    }
    assert find_overlaps(ROWS, tmp_path, ["c", "c"]) == {0: "13 words in common with c/test.json"}
    assert set(find_overlaps(ROWS, tmp_path, ["b", "c"])) == {0, 1}  # c holds nothing new


# ---- which rows are found

SENTENCE = [f"w{at}" for at in range(30)]


@pytest.mark.parametrize(
    "row",
    [
        Instruction(LONG, "112."),
        Instruction("Solve.", "112.", input=f"{OTHER[:60]} {LONG}"),
        Instruction("Ask about hens.", f"Here you are: {LONG}"),
        Instruction("And now?", "Still 112.", history=(Turn(LONG, "112."),)),
        Instruction("Thanks!", "You are welcome.", history=(Turn("Hi!", "Hello."), Turn("Ask me.", LONG))),
    ],
    ids=["instruction", "input", "response", "earlier user", "earlier response"],
)
def test_thirteen_words_count_wherever_they_stand(tmp_path: Path, row: Instruction) -> None:
    assert overlaps(tmp_path, json.dumps([SHORT, LONG]), [ROWS[2], row, ROWS[2]]) == {1}


@pytest.mark.parametrize("start", [0, 8, 17])
def test_twelve_words_do_not_count(tmp_path: Path, start: int) -> None:
    before, after = ["one", "two", "three"], ["four", "five", "six"]
    thirteen, twelve = SENTENCE[start : start + 13], SENTENCE[start : start + 12]
    rows = [Instruction(" ".join([*before, *run, *after]), "Yes.") for run in (thirteen, twelve, thirteen[::-1])]
    assert overlaps(tmp_path, json.dumps({"text": " ".join(SENTENCE)}), rows) == {0}


def test_a_run_of_words_ends_with_its_text(tmp_path: Path) -> None:
    row = Instruction(" ".join(SENTENCE[:20]), "Yes.")
    assert overlaps(tmp_path, json.dumps([" ".join(SENTENCE[:10]), " ".join(SENTENCE[10:])]), [row]) == set()


@pytest.mark.parametrize(
    ("instruction", "input", "found"),
    [
        ("Which metal is liquid at 21 degrees?", "", True),
        ("Which metal", "is liquid at 20 degrees?", True),
        ("Which metal is solid at minus 60 degrees?", "", False),
        ("Which metal is liquid at 20 degrees?", "Answer as a poem of four lines about the sea.", False),
    ],
)
def test_a_short_prompt_is_found_by_being_near(tmp_path: Path, instruction: str, input: str, found: bool) -> None:
    row = Instruction(instruction, "Mercury.", input)
    assert overlaps(tmp_path, json.dumps([OTHER, SHORT]), [ROWS[2], row]) == ({1} if found else set())


@pytest.mark.parametrize(
    "label", ["entailment", "A", "not_entailment", "Mercury (80)", "", "?" * 30, "-" * 20 + " yes"]
)
def test_labels_and_short_answers_never_count(tmp_path: Path, label: str) -> None:
    rows = [Instruction(label or "Say nothing.", label or "Well.", history=(Turn("Well?", label or "Yes."),))]
    assert overlaps(tmp_path, json.dumps([{"label": label, "text": OTHER}, label]), rows) == set()


def test_texts_all_shorter_than_thirteen_words(tmp_path: Path) -> None:
    assert overlaps(tmp_path, json.dumps([SHORT, "Name the largest moon of Saturn."]), ROWS) == {1}


def test_no_rows(tmp_path: Path) -> None:
    assert overlaps(tmp_path, json.dumps([LONG, SHORT]), []) == set()


# ---- against a plain search


def plainly(rows: Sequence[Instruction], texts: Sequence[str]) -> set[int]:
    """The same with sets of words and of characters, every pair."""

    def runs(text: str) -> set[tuple[str, ...]]:
        words = normalize(text).split()
        return {tuple(words[at : at + 13]) for at in range(len(words) - 12)}

    counted = [normalize(text) for text in texts if len(normalize(text)) >= 20]
    known = set().union(*map(runs, counted))
    found = set()
    for at, row in enumerate(rows):
        said = " ".join([*(text for turn in row.history for text in turn), row.instruction, row.input, row.response])
        prompt = normalize(f"{row.instruction} {row.input}")
        near = (jaccard(prompt, text) >= 0.7 for text in counted)
        if known & runs(said) or any(near):
            found.add(at)
    return found


def shipped_rows() -> list[Instruction]:
    rows = [json.loads(line) for line in (ROOT / "data/raw/instructions.jsonl").open(encoding="utf-8")]
    return [Instruction(row["instruction"], row["output"], row["input"]) for row in rows]


def test_shipped_data_overlaps_what_was_taken_from_it_and_no_unrelated_benchmark(tmp_path: Path) -> None:
    rows = shipped_rows()
    unrelated = [paragraph for topic in topics.values() for paragraph in topic.split("\n\n")]  # Python's own manual
    assert len(unrelated) > 2000
    assert overlaps(tmp_path, json.dumps(unrelated), rows) == set()
    taken = range(7, len(rows), 200)
    texts = [f"{rows[at].instruction} {rows[at].input}" for at in taken]
    found = overlaps(tmp_path, json.dumps([*unrelated, *texts]), rows)
    assert found == plainly(rows, texts)
    assert {at for at in taken if len(normalize(f"{rows[at].instruction} {rows[at].input}")) >= 20} <= found


WORDS = st.lists(st.sampled_from(["red", "green", "Blue,", "grey-white", "no.", "7"]), max_size=30).map(" ".join)


@settings(max_examples=50, deadline=None)
@given(st.lists(WORDS, min_size=1, max_size=6), st.lists(st.tuples(WORDS, WORDS, WORDS), max_size=6))
def test_what_is_found_is_what_a_plain_search_finds(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], rows: list[tuple[str, str, str]]
) -> None:
    given_rows = [Instruction(first, second, history=(Turn("Hi!", third),)) for first, second, third in rows]
    texts = [OTHER, *texts]
    assert overlaps(tmp_path_factory.mktemp("any"), json.dumps(texts), given_rows) == plainly(given_rows, texts)


# ---- mistakes

BROKEN: dict[str, tuple[str | bytes, str]] = {
    "quiz/a.json": ('{"question": ', "cannot be read (Expecting value: line 1"),
    "quiz/b.jsonl": ('{"a": 1}\n{"a": \n', "cannot be read (Expecting value: line 3"),
    "quiz/c.json": ("[" * 100_000, "cannot be read (maximum recursion depth exceeded"),
    "quiz/d.json": ("9" * 5000, "cannot be read (Exceeds the limit"),
    "quiz/e.csv": ("Gr\u00fc\u00df".encode("latin-1"), "not UTF-8 at byte 3; convert the file"),
    "quiz/f.jsonl.gz": (gzip.compress(LINES.encode())[:-20], "damaged or cut short"),
    "quiz/g.parquet": (parquet({"question": LONG})[:-9], "damaged or cut short"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, name: str) -> None:
    content, reason = BROKEN[name]
    with pytest.raises(UserError) as caught:
        overlaps(tmp_path, content, ROWS, name)
    assert str(caught.value).startswith(f"{tmp_path / name}: {reason}")
    assert "benchmark again" in str(caught.value) or "file" in str(caught.value)
    assert "dvc repro" not in str(caught.value)  # it is none of ours


# ---- by the door


@pytest.fixture
def project(tmp_path: Path) -> Project:
    project = Project(tmp_path)
    rows = [{"instruction": f"Describe the letter {letter}.", "output": f"It is {letter}."} for letter in "abcdefgh"]
    rows.insert(1, {"instruction": "Nothing is answered here."})  # cannot be read, so positions shift
    rows += [{"instruction": row.instruction, "output": row.response} for row in [*ROWS, ROWS[0]]]
    project.write("data/raw/rows.jsonl", "\n".join(map(json.dumps, rows)))
    return project


def test_overlaps_are_removed_counted_and_listed(project: Project) -> None:
    project.write("data/benchmarks/farming/test.csv", csv_row(LONG, "a", "b"))
    project.write("data/benchmarks/metals/dev/a.json", json.dumps([SHORT]))
    project.write("data/benchmarks/unused/a.json", json.dumps(["Describe the letter a."]))
    project.set("format", remove_benchmarks=["farming", "metals"])
    command = [sys.executable, "-m", "stages.format"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=project.folder, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    ledger = [json.loads(line) for line in (project.folder / "data/rejected.jsonl").read_text().splitlines()]
    assert [(row["line"], row["reason"]) for row in ledger if "overlap" in row["reason"]] == [
        (10, "benchmark overlap: 13 words in common with farming/test.csv"),
        (11, "benchmark overlap: near-duplicate of a text in metals/dev/a.json"),
        (13, "benchmark overlap: 13 words in common with farming/test.csv"),
    ]
    metrics = json.loads((project.folder / "metrics/format.json").read_text())
    counts = {name: metrics[name] for name in ("rows_read", "rows_kept", "rows_rejected", "benchmark_overlaps_removed")}
    assert counts == {"rows_read": 13, "rows_kept": 9, "rows_rejected": 1, "benchmark_overlaps_removed": 3}


def test_a_benchmark_that_is_not_there(project: Project) -> None:
    project.set("format", remove_benchmarks=["mmlu"])
    folder = project.folder / "data/benchmarks"
    project.fails("format", f"format.remove_benchmarks: no folder {folder / 'mmlu'}; there are: none")
    project.write("data/benchmarks/squad/dev.json", json.dumps([LONG]))
    project.fails("format", f"format.remove_benchmarks: no folder {folder / 'mmlu'}; there are: squad")


@pytest.mark.parametrize("name", ["LICENSE", "labels.csv", "empty.json"])
def test_a_benchmark_without_a_text(project: Project, name: str) -> None:
    project.write(f"data/benchmarks/mmlu/{name}", "" if name == "empty.json" else "A,B\n")
    project.set("format", remove_benchmarks=["mmlu"])
    project.fails("format", f"{project.folder / 'data/benchmarks/mmlu'}: holds no text to compare with")


def test_a_question_asked_in_an_earlier_turn_is_found(tmp_path: Path) -> None:
    asked_before = Instruction("And which one is a gas?", "Oxygen.", history=(Turn(SHORT.lower(), "Mercury."),))
    content = json.dumps([{"question": SHORT}])
    assert overlaps(tmp_path, content, [ROWS[2], asked_before, ROWS[2]]) == {1}
