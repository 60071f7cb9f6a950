"""One example shown token by token, through the door a user uses."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest

from stages.instructions.deal import SPLITS
from stages.instructions.instruction import Instruction, Turn
from stages.instructions.prompts import TemplateMark, make_prompt, write_prompts
from stages.instructions.templates import TEMPLATES
from stages.pipeline.errors import UserError
from stages.tokens.arrays import read_arrays
from stages.tokens.inspection import inspect_example
from stages.tokens.tokenizer import Tokenizer
from tests.conftest import ROOT
from tests.tokens.making import OTHERS, make_byte_level, make_other

CHATML = TEMPLATES["chatml"]
TALK = Instruction(
    "And a dragon? \U0001f409 <b>draw</b> & co.",
    "Here \u4f60\u597d is one:\n\n    return '\U0001f409'  # \x1b[31mred\x07\ttab",
    system="Be terse.",
    history=(Turn("Name a colour.", "Blue."), Turn("Another one.", "Green, and \ufffd\ufffd")),
    file="deep/talks.jsonl",
    line=40123,
)
ROWS = {
    "train": [Instruction("Add 1 and 2.", "It is 3.", file="a.jsonl", line=1), TALK],
    "validation": [Instruction("Add 3 and 4.", "It is 7.", "in words", file="a.jsonl", line=2)],
    "test": [Instruction("Add 5 and 6.", "It is 11.", file="a.jsonl", line=3)],
}
WRITTEN = ["Blue.<|im_end|>", "Green, and \ufffd\ufffd<|im_end|>", f"{TALK.response}<|im_end|>"]
"""What TALK teaches."""

VISIBLE = str.maketrans({" ": "\u00b7", "\n": "\u21b5", "\t": "\u21e5", "\x1b": "\u241b", "\x07": "\u2407"})


def make_project(folder: Path, base_model: Path) -> Path:
    """Splits of ROWS, tokenized for a model."""
    (folder / "data").mkdir(parents=True)
    (folder / "data/base_model").symlink_to(base_model)
    (folder / "params.yaml").write_text(
        json.dumps({"collate": {"strategy": "pack", "max_seq_len": 250, "mask_instruction": True}})
    )
    for name in SPLITS:
        prompts = [make_prompt(row, CHATML) for row in ROWS[name]]
        write_prompts(
            folder / f"data/split/{name}.parquet", prompts, TemplateMark(CHATML.name, CHATML.hash, CHATML.end)
        )
    done = start(folder)
    assert done.returncode == 0, done.stderr
    return folder


def start(project: Path, *arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    kept = {key: value for key, value in os.environ.items() if key not in ("FORCE_COLOR", "NO_COLOR", "COLUMNS")}
    return subprocess.run(
        [sys.executable, "-m", "stages.tokenize_and_collate", *arguments],
        cwd=project,
        env=kept | {"PYTHONPATH": str(ROOT)} | environment,
        capture_output=True,
        text=True,
    )


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inspected")
    return make_project(folder / "project", make_byte_level(folder / "model", "smollm"))


def shown_rows(printed: str) -> Iterator[tuple[int, str, int, str, int]]:
    """Position, token, id, target and target id of each line of the table."""
    for line in printed.splitlines():
        found = re.fullmatch(r" *(\d+)  (.*?) +(\d+)  (.*?) +(-?\d+) *", line)
        if found:
            yield int(found[1]), found[2], int(found[3]), found[4], int(found[5])


def test_by_its_id_in_a_pipe(project: Path) -> None:
    done = start(project, "inspect", TALK.id)
    assert (done.returncode, done.stderr) == (0, "")
    assert "\x1b" not in done.stdout
    assert "\x07" not in done.stdout
    assert done.stdout.startswith(f"train example 1, id {TALK.id}\nfrom deep/talks.jsonl:40123, in row 0\n")
    assert "# \u241b[31mred\u2407" in done.stdout
    arrays, tokenizer = read_arrays(project / "data/tokens/train"), Tokenizer(project / "data/base_model")
    (places,) = (arrays.example[0] == 1).nonzero()
    shown = list(shown_rows(done.stdout))
    inputs, labels = arrays.input_ids[0, places].tolist(), arrays.labels[0, places].tolist()
    tokens, targets = (
        [tokenizer.token(at).translate(VISIBLE) if at != -100 else "" for at in ids] for ids in (inputs, labels)
    )
    assert shown == list(zip(range(len(places)), tokens, inputs, targets, labels, strict=True))
    supervised = sum(len(tokenizer.encode(text.removesuffix("<|im_end|>"))) + 1 for text in WRITTEN)
    assert f"\n{len(places)} tokens, {supervised} with a loss ({supervised / len(places):.0%})\n" in done.stdout


def test_by_its_number_in_a_split(project: Path) -> None:
    first = start(project, "inspect", "0").stdout
    assert first.startswith(f"train example 0, id {ROWS['train'][0].id}\n")
    other = start(project, "inspect", "0", "--split", "validation").stdout
    assert other.startswith(f"validation example 0, id {ROWS['validation'][0].id}\n")
    assert "in words<|im_end|>" in other


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["0123456789abcdef"],
            "no example '0123456789abcdef'; give an id from data/split, or a number from 0 to 1 for train",
        ),
        (["2"], "no example '2'"),
        (["1", "--split", "test"], "no example '1'; give an id from data/split, or a number from 0 to 0 for test"),
        (["0", "--tokens", "nowhere"], "nowhere/train/ids.json: not found; run `dvc repro` to make it"),
    ],
)
def test_an_example_that_is_not_there(project: Path, arguments: list[str], message: str) -> None:
    done = start(project, "inspect", *arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert re.fullmatch(r"error: .*\n", done.stderr)
    assert message in done.stderr


def test_colour_is_where_the_loss_is(project: Path) -> None:
    done = start(project, "inspect", TALK.id, FORCE_COLOR="1", COLUMNS="200")
    text, table = done.stdout.split("\x1b[1mposition")
    coloured = re.findall(r"\x1b\[1;32m(.*?)\x1b\[0m", text.partition("\n\n")[2])
    assert same("".join(coloured)) == same("".join(WRITTEN))
    (arrays, lines) = read_arrays(project / "data/tokens/train"), table.splitlines()[1:]
    assert ["\x1b[1;32m" in line for line in lines] == (arrays.labels[0][arrays.example[0] == 1] != -100).tolist()


def same(text: str) -> str:
    """A terminal's text, however its white space was laid out."""
    return "".join(text.translate(VISIBLE | {ord(c): "" for c in " \t\n"}).split())


class Page(HTMLParser):
    """The tokens in the text, with whether they are marked, and the cells of the table."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tokens: list[tuple[str, bool]] = []
        self.links: list[tuple[str, str]] = []
        self.rows: list[tuple[bool, list[str]]] = []
        self.tags: set[str] = set()
        self._inside: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self._inside.append(tag)
        marked = ("class", "loss") in attributes
        if tag == "a":
            self.tokens.append(("", marked))
            self.links.append((dict(attributes)["href"] or "", dict(attributes)["title"] or ""))
        elif tag == "tr":
            self.rows.append((marked, []))
        elif tag == "td":
            self.rows[-1][1].append("")

    def handle_endtag(self, tag: str) -> None:
        while self._inside and self._inside.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        inside = self._inside[-1] if self._inside else ""
        if inside == "a":
            self.tokens[-1] = (self.tokens[-1][0] + data, self.tokens[-1][1])
        elif inside == "td":
            self.rows[-1][1][-1] += data


def test_the_page_shows_the_same(project: Path) -> None:
    done = start(project, "inspect", TALK.id, "--html", "pages/talk.html")
    assert done.stderr == "written to pages/talk.html\n"
    source = (project / "pages/talk.html").read_text(encoding="utf-8")
    page = Page(source)
    visible = {ord(c): VISIBLE[ord(c)] for c in "\x1b\x07"}
    whole = "".join(segment.text for segment in make_prompt(TALK, CHATML).segments)
    assert "".join(text for text, _ in page.tokens) == whole.translate(visible)
    assert "".join(text for text, marked in page.tokens if marked) == "".join(WRITTEN).translate(visible)
    cells = [(marked, row) for marked, row in page.rows if row]
    shown = list(shown_rows(done.stdout))
    assert [[row[0], row[2], row[4]] for _, row in cells] == [[str(row[at]) for at in (0, 2, 4)] for row in shown]
    assert [marked for marked, _ in cells] == [row[4] != -100 for row in shown]
    # Each links to the row in which it is the target, or the first of its tokens is.
    assert page.links[0] == ("#t0", f"token {shown[0][2]}, no loss")
    arrays, position = read_arrays(project / "data/tokens/train"), 0
    following = arrays.next_ids[0][arrays.example[0] == 1].tolist()
    for (href, title), (_, marked) in list(zip(page.links, page.tokens, strict=True))[1:]:
        assert href == f"#t{position}"
        ids = following[position : position + len(re.findall(r"\d+", title))]
        assert title == f"token {' '.join(map(str, ids))}, {'with a loss' if marked else 'no loss'}"
        position += len(ids)
    assert position == len(following)
    assert not page.tags & {"script", "link", "img", "b"}
    assert "http" not in source


@pytest.mark.parametrize("kind", OTHERS)
def test_words_stay_apart_with_a_tokenizer_of_another_kind(tmp_path: Path, kind: str) -> None:
    project = make_project(tmp_path / "project", make_other(tmp_path / "model", kind))
    tokenizer = Tokenizer(project / "data/base_model")
    found = inspect_example("0", None, project / "data/tokens", project / "data/split", tokenizer)
    text = "".join(piece.text for piece in found.pieces if piece.has_loss)
    assert text.lower().strip() == "it is 3.<|im_end|>"


def test_arrays_that_lack_an_example(project: Path, tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    for path in (project / "data/tokens/train").iterdir():
        (tmp_path / "train" / path.name).symlink_to(path)
    (tmp_path / "train/ids.json").unlink()
    (tmp_path / "train/ids.json").write_text(json.dumps(["a", "b", "c"]))
    with pytest.raises(UserError, match=r"example 2 is in ids\.json and not in the arrays"):
        inspect_example("c", "train", tmp_path, project / "data/split", Tokenizer(project / "data/base_model"))
