"""What two experiments were made from: every difference is named, and where nothing differs, that is said."""

import json
import shutil
import string
import subprocess
import sys
from collections.abc import Callable, Sequence
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from stages.experiments.comparison import compare, read_experiment
from stages.experiments.comparison_markdown import comparison_markdown, escaped
from stages.experiments.comparison_page import write_page
from stages.experiments.comparison_scores import differences
from stages.experiments.comparison_texts import around_changes, changed_words
from stages.experiments.comparison_words import sections, verdict
from stages.experiments.origins_data import FEW, changed_rows
from stages.instructions.instruction import Instruction
from stages.instructions.prompts import TemplateMark, make_prompt, write_prompts
from stages.instructions.templates import TEMPLATES
from stages.pipeline.files import read_parquet, write_json, write_parquet
from tests.browser import HOSTILE, check_self_contained, chromium
from tests.experiments.making import SCORES, make_experiment, run
from tests.pipeline.projects import commit, git

KNOBS: dict[str, Any] = {"confidence": 0.95, "resamples": 100, "seed": 1}
TEMPLATE = TEMPLATES["alpaca"]
MARK = TemplateMark("alpaca", "hash", "")

RAW = [Instruction(f"Ask {number}?", f"Answer {number}.", file="a.jsonl", line=number) for number in range(1, 7)]
DEALT = {"train": RAW[:4], "validation": RAW[4:5], "test": RAW[5:]}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def make_data(folder: Path, dealt: dict[str, list[Instruction]]) -> None:
    """data/prompts.parquet and data/split of rows dealt by hand."""
    rows = sorted((row for own in dealt.values() for row in own), key=lambda row: (row.file, row.line))
    write_prompts(folder / "data/prompts.parquet", [make_prompt(row, TEMPLATE) for row in rows], MARK)
    for name in ("train", "validation", "test"):
        prompts = [make_prompt(row, TEMPLATE) for row in dealt.get(name, [])]
        write_prompts(folder / f"data/split/{name}.parquet", prompts, MARK)


def make_origin(folder: Path, **changes: Any) -> Path:
    """An experiment of two stages with everything that tells where it came from; `changes` are as below."""
    known: dict[str, Any] = {
        "params": {"split": {"salt": "a"}, "finetune": {"learning_rate": "1e-4", "epochs": 2}},
        "dealt": DEALT, "code": "1", "raw": "1", "prompts": "1", "checkpoint": "1", "environment": {"torch": "2.12.0"},
        "base": {"source": "path:m", "sha256": "aa"}, "base_md5": "1", "scores": [10.0, 20.0],
    } | changes  # fmt: skip
    make_experiment(folder, known["scores"])
    make_data(folder, known["dealt"])
    params = known["params"]
    stages = {
        "split": {
            "cmd": "split",
            "deps": [{"path": "stages/split.py", "md5": known["code"]}, {"path": "data/raw", "md5": known["raw"]}],
            "params": {"params.yaml": {"split": params["split"]}},
            "outs": [
                {"path": "data/base_model", "md5": known["base_md5"]},
                {"path": "data/prompts.parquet", "md5": known["prompts"]},
                {"path": "data/split", "md5": known["prompts"]},
            ],
        },
        "finetune": {
            "cmd": "finetune",
            "deps": [
                {"path": "stages/split.py", "md5": known["code"]},
                {"path": "data/split", "md5": known["prompts"]},
                {"path": "data/split/test.parquet", "md5": known["prompts"]},
            ],
            "params": {"params.yaml": {"finetune": params["finetune"]}},
            "outs": [{"path": "data/checkpoint", "md5": known["checkpoint"]}],
        },
    }
    (folder / "params.yaml").write_text(yaml.safe_dump(params))
    (folder / "dvc.lock").write_text(yaml.safe_dump({"schema": "2.0", "stages": stages}, sort_keys=False))
    write_json(folder / "data/checkpoint/environment.json", known["environment"])
    write_json(folder / "data/base_model/origin.json", known["base"])
    return folder


def against(**changes: Any) -> dict[str, Any]:
    """An experiment compared with another that has these changes."""
    for name, own in (("a", {}), ("b", changes)):
        shutil.rmtree(name, ignore_errors=True)
        make_origin(Path(name), **own)
    return compare(read_experiment("a", Path("x")), read_experiment("b", Path("x")), **KNOBS)


def causes_of(figures: dict[str, Any]) -> dict[str, Any]:
    """Those that are any."""
    return {name: value for name, value in figures["causes"].items() if value}


# ---- each cause by itself


def test_where_nothing_differs_that_is_said() -> None:
    figures = against()
    assert (causes_of(figures), figures["not_reproduced"]) == ({}, {})
    assert verdict(figures)[0] == "What changed: nothing."


def test_other_results_from_the_same_inputs_are_a_warning() -> None:
    figures = against(checkpoint="2")
    assert figures["not_reproduced"] == {"finetune": ["data/checkpoint"]}
    assert verdict(figures)[0] == "What changed: nothing, and yet the results differ."
    assert "finetune made other results of the same code, data and parameters" in figures["warnings"][0]
    elsewhere = against(checkpoint="2", environment={"torch": "2.13.0"})
    assert causes_of(elsewhere) == {"environment": {"torch": ("2.12.0", "2.13.0")}}
    assert elsewhere["warnings"][0].endswith("they were made in two environments")


def test_parameters_are_those_that_the_stages_took() -> None:
    params: dict[str, Any] = {"split": {"salt": "a"}, "finetune": {"learning_rate": 0.0002, "epochs": 2}}
    figures = against(params=params, checkpoint="2")
    assert causes_of(figures) == {"params": {"finetune.learning_rate": ("1e-4", 0.0002)}}
    assert verdict(figures)[0] == "What changed: finetune.learning_rate from 1e-4 to 0.0002."
    assert figures["not_reproduced"] == {}
    make_origin(Path("b"))
    params["finetune"]["learning_rate"] = 0.0001  # the same number, written in another way
    params["finetune"]["epochs"] = float("inf")
    Path("b/params.yaml").write_text(yaml.safe_dump(params))  # and not run since
    found = compare(read_experiment("a", Path("x")), read_experiment("b", Path("x")), **KNOBS)
    assert found["causes"]["params"] == {}
    assert found["causes"]["unknown"] == [
        "B: params.yaml was changed after the run (finetune.epochs); compared is what the stages took"
    ]
    json.dumps(against(params=params, checkpoint="2"), allow_nan=False)


def test_code_inputs_base_model_and_environment() -> None:
    figures = against(
        code="2", raw="2", base={"source": "path:n", "sha256": "aa"}, base_md5="2", environment={"torch": "3"},
        checkpoint="2",
    )  # fmt: skip
    assert causes_of(figures) == {
        "code": {"stages/split.py": {"change": "changed", "stages": ["split", "finetune"]}},
        "inputs": {"data/raw": ("1", "2")},
        "base_model": {"source": ("path:m", "path:n")},
        "environment": {"torch": ("2.12.0", "3")},
    }
    said = "What changed: 1 file of code, 1 input, the base model, the environment."
    assert verdict(figures)[0] == said
    titles = [section.title for section in sections(figures)]
    assert titles == ["Code", "Other inputs", "Base model", "Environment", "Results"]


def test_what_cannot_be_told_is_said() -> None:
    make_origin(Path("a"))
    make_experiment(Path("b"), [10.0, 20.0])
    figures = compare(read_experiment("a", Path("x")), read_experiment("b", Path("x")), **KNOBS)
    assert figures["causes"]["unknown"] == [
        "B has no dvc.lock: code and inputs cannot be compared",
        "B has no params.yaml: parameters cannot be compared",
        "B has no data/prompts.parquet at hand: rows of data cannot be compared",
        "B does not say in which environment it was trained",
    ]
    assert verdict(figures)[0] == "What changed: nothing, as far as can be told."
    assert figures["warnings"][:4] == figures["causes"]["unknown"]


# ---- rows of data


def test_rows_added_removed_edited_and_dealt_otherwise() -> None:
    shorter = RAW[1]._replace(response="No.")
    reworded = RAW[2]._replace(instruction="Please ask 3?")
    new = Instruction("New?", "Yes.", file="b.jsonl", line=1)
    dealt = {"train": [shorter, reworded, RAW[4]], "validation": [RAW[3], new], "test": RAW[5:]}
    figures = against(dealt=dealt, prompts="2")
    data = figures["causes"]["data"]
    counts = {kind: (data[kind]["count"], data[kind]["by_split"]) for kind in ("added", "removed", "edited", "moved")}
    assert counts == {
        "added": (1, {"validation": 1}),
        "removed": (1, {"train": 1}),
        "edited": (2, {"train": 2}),
        "moved": (2, {"train to validation": 1, "validation to train": 1}),
    }
    assert data["added"]["ids"] == [new.id]
    assert (data["removed"]["rows"][0]["file"], data["removed"]["rows"][0]["line"]) == ("a.jsonl", 1)
    assert [row["was"] for row in data["edited"]["rows"]] == [
        {"id": RAW[1].id, "response": "Answer 2."},
        {"id": RAW[2].id, "instruction": "Ask 3?"},
    ]
    assert verdict(figures)[0] == (
        "What changed: 1 row of data added, 1 row of data removed, 2 rows of data edited, 2 rows in another split."
    )
    (section,) = (section for section in sections(figures) if section.title == "Data")
    assert ("added", "validation", "b.jsonl:1", "New?") in section.rows
    assert ("edited", "", "response was", "Answer 2.") in section.rows
    assert ("moved", "train to validation", "a.jsonl:4", "Ask 4?") in section.rows


def test_an_edited_row_that_is_in_another_split_now_says_so() -> None:
    dealt = {"train": RAW[:4], "validation": [RAW[4]._replace(response="No.")], "test": RAW[5:]}
    edited = dealt | {"train": [*RAW[:3], RAW[4]._replace(response="No.")], "validation": [RAW[3]]}
    (section,) = (section for section in sections(against(dealt=edited, prompts="2")) if section.title == "Data")
    assert ("edited", "validation to train", "a.jsonl:5", "Ask 5?") in section.rows
    same = sections(against(dealt=dealt, prompts="2"))
    (section,) = (section for section in same if section.title == "Data")
    assert ("edited", "validation", "a.jsonl:5", "Ask 5?") in section.rows


def test_a_row_that_only_changed_its_category() -> None:
    dealt = {"train": [RAW[0]._replace(category="c"), *RAW[1:4]], "validation": RAW[4:5], "test": RAW[5:]}
    figures = against(dealt=dealt, prompts="2")
    assert figures["causes"]["data"]["recategorized"] == {"count": 1, "ids": [RAW[0].id]}
    assert verdict(figures)[0] == "What changed: 1 row in another category."


texts = st.sampled_from("abcd")
placed = st.lists(st.tuples(texts, texts, st.integers(1, 3)), max_size=12, unique_by=lambda row: row[:2])


@given(placed, placed)
@settings(max_examples=40, deadline=None)
def test_every_row_is_accounted_for_once(
    tmp_path_factory: pytest.TempPathFactory, first: Sequence[Any], second: Sequence[Any]
) -> None:
    folder = tmp_path_factory.mktemp("data")
    for name, rows in (("a", first), ("b", second)):
        made = [Instruction(asked, answer, file="f", line=line) for asked, answer, line in rows]
        prompts = [make_prompt(row, TEMPLATE) for row in made]
        if prompts:
            write_prompts(folder / name, prompts, MARK)
    ids = [{Instruction(asked, answer).id for asked, answer, _ in rows} for rows in (first, second)]
    found = changed_rows(*(finder(folder / name) for name in "ab"))
    if not first or not second:
        assert found is None
        return
    assert found is not None
    come = found["added"]["ids"] + found["edited"]["ids"]
    assert len(come) == len(set(come))
    assert set(come) == ids[1] - ids[0]
    assert found["removed"]["count"] + found["edited"]["count"] == len(ids[0] - ids[1])
    assert set(found["removed"]["ids"]) <= ids[0] - ids[1]
    # a question that lost as many answers as it got is wholly a matter of edits
    assert len(found["added"]["rows"]) == min(found["added"]["count"], FEW)
    asked = [{Instruction(q, a).id: q for q, a, _ in rows} for rows in (first, second)]
    removed, added = (
        {side[id] for id in found[kind]["ids"]} for side, kind in zip(asked, ("removed", "added"), strict=True)
    )
    assert not removed & added


def finder(path: Path) -> Callable[[str], Path | None]:
    return lambda name: path if name == "data/prompts.parquet" and path.is_file() else None


# ---- texts in a terminal, in Markdown, on a page

words = st.text(alphabet="ab \n.é\u202e<", max_size=30)


@given(words, words)
def test_marked_words_are_the_texts_and_what_is_not_marked_is_common(before: str, after: str) -> None:
    pieces = changed_words(before, after)
    assert ["".join(text for text, _ in side) for side in pieces] == [before, after]
    same = ["".join(text for text, changed in side if not changed) for side in pieces]
    assert same[0] == same[1]
    assert any(changed for side in pieces for _, changed in side) == (before != after)


def test_a_long_text_is_cut_so_that_its_change_is_seen() -> None:
    before, after = changed_words("same " * 100 + "old", "same " * 100 + "new")
    assert around_changes(before).endswith(" same old")
    assert around_changes(after).endswith(" same new")
    assert around_changes(before).startswith("…")
    assert around_changes([("same " * 100, False)]).startswith("same")
    assert around_changes([]) == "(empty)"


class Read(HTMLParser):
    """Elements, and the texts of table cells and of code."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.cells: list[str] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        if tag in ("td", "th"):
            self.cells.append("")

    def handle_data(self, data: str) -> None:
        self.text += data
        if self.cells:
            self.cells[-1] += data


MARKDOWN = MarkdownIt("commonmark", {"html": True}).enable("table")
HARD = (
    *HOSTILE, "a | b \\| c \\\\| d", "`code` ``more`` ```", "@everyone #12 !34 user/repo#5 https://example.invalid",
    "*b* _i_ ~~s~~ [x](y) ![z](w)", "</code></details>", "$a$ &amp; &#64; <!-- ", "1. one\n\n# two\n- three\n> four",
)  # fmt: skip


LOSSES = "step,epoch,tokens_seen,train_loss,validation_loss\n0,0,0,2.0,2.1\n5,1,900,1.0,1.5\n"


def shown(text: str) -> str:
    """As `one_line` shows it."""
    return "".join(letter if letter.isprintable() else "\ufffd" for letter in " ".join(text.split()))


@given(st.text(alphabet=string.printable, max_size=60))
def test_any_text_is_one_cell_of_a_table_and_stays_as_it_is(text: str) -> None:
    found = Read(MARKDOWN.render(f"| a | b |\n| --- | --- |\n| {escaped(text)} | x |\n"))
    assert found.tags <= {"table", "thead", "tbody", "tr", "th", "td", "code"}
    assert [cell.strip() for cell in found.cells] == ["a", "b", shown(text).strip(), "x"]


def test_mentions_and_links_stand_in_code() -> None:
    for text in ("@you", "#1", "!2", "https://example.invalid", "www.example.invalid", "user@example.invalid"):
        assert escaped(text).startswith("<code>")
    assert escaped("What is 12.5 % of 80? It's (about) 10!") == "What is 12.5 % of 80? It's (about) 10&#33;"


def hostile() -> tuple[Any, Any, dict[str, Any]]:
    """Two experiments in which every text is out to break the page."""
    rows = [
        Instruction(text, text, input=text, category=text, file=text, line=1) for text in HARD
    ]  # fmt: skip
    params = {"split": {"salt": HARD[0]}, "finetune": {HARD[1]: HARD[2]}}
    make_origin(Path("a"))
    make_origin(
        Path("b"), params=params, dealt={"train": rows}, prompts="2", checkpoint="2", base_md5="2",
        environment={"torch": HARD[3]}, base={HARD[4]: HARD[5]}, scores=[20.0, 0.0],
    )  # fmt: skip
    for name, end in (("a", " one"), ("b", " two")):
        path = Path(name, "data/responses.parquet")
        made = read_parquet(path)
        schema = pa.parquet.read_schema(path)
        for row, text in zip(made, HARD, strict=False):
            row |= {"instruction": text, "response": text + end, "category": HARD[0]}
        write_parquet(path, made, schema)
    one, other = (read_experiment(name, Path("x")) for name in "ab")
    return one, other, compare(one, other, **KNOBS)


def test_hostile_texts_stay_texts_in_markdown() -> None:
    one, other, figures = hostile()
    found = Read(MARKDOWN.render(comparison_markdown(figures, differences(one.rows, other.rows))))
    assert found.tags <= {
        "h3", "h4", "ul", "li", "p", "strong", "blockquote", "table", "thead", "tbody", "tr", "th", "td", "code",
        "details", "summary",
    }  # fmt: skip
    assert not found.attributes - {"style"}
    assert any(cell.startswith(shown(HARD[0])[:80]) for cell in found.cells)


def test_hostile_texts_stay_texts_on_the_page() -> None:
    one, other, figures = hostile()
    write_page(Path("out.html"), one, other, figures, differences(one.rows, other.rows))
    page = Path("out.html").read_text(encoding="utf-8")
    found = Read(page)
    assert not found.tags & {"script", "img", "iframe", "a", "link", "base", "svg"}
    assert not {name for name in found.attributes if name.startswith(("on", "src", "href"))}
    assert "default-src 'none'; style-src 'sha256-" in unescape(page)
    for text in HARD[:2]:
        assert text.split("\n")[0] in found.text
    write_page(Path("out.html"), one, other, figures, differences(one.rows, other.rows))
    assert Path("out.html").read_text(encoding="utf-8") == page


def test_in_a_browser_nothing_runs_and_nothing_is_asked_for(tmp_path: Path) -> None:
    one, other, figures = hostile()
    for name in "ab":
        Path(name, "metrics/losses.csv").write_text(LOSSES)
    rows = differences(one.rows, other.rows)
    write_page(Path("out.html"), one, other, figures, rows)
    with chromium(tmp_path) as browser:
        for width in (375, 1400):
            check_self_contained(browser, tmp_path / "out.html", width)
        asked = browser.execute_script("return [...document.querySelectorAll('.asked')].map(e => e.textContent)")
        assert asked == [row.first.asked[0] for row in rows]
        styled = browser.execute_script("return getComputedStyle(document.querySelector('.pair')).display")
        assert styled == "grid", "the policy shuts the page's own style out"


def test_the_page_has_the_curves_of_both() -> None:
    make_origin(Path("a"))
    make_origin(Path("b"))
    for name in "ab":
        Path(name, "metrics/losses.csv").write_text(LOSSES)
    one, other = (read_experiment(name, Path("x")) for name in "ab")
    figures = compare(one, other, **KNOBS)
    assert figures["a"]["results"]["tokens_seen"] == 900
    write_page(Path("out.html"), one, other, figures, [])
    page = Path("out.html").read_text(encoding="utf-8")
    assert page.count("<svg") == 1
    assert "A: a" in page
    assert "Nothing differs in what the two were made from." in page


# ---- results


def test_benchmarks_that_both_measured() -> None:
    def measured(value: float, **about: Any) -> dict[str, Any]:
        own = {"value": value, "low": value - 0.1, "high": value + 0.1, "n": 9}
        return {"metrics": {"acc": {"fine-tuned": own, "base": own}}, "shots": 5} | about

    make_origin(Path("a"))
    make_origin(Path("b"))
    write_json(Path("a/metrics/benchmark.json"), {"mmlu": measured(0.25), "mmlu/art": measured(0), "glue": measured(0)})
    write_json(Path("b/metrics/benchmark.json"), {"mmlu": measured(0.5, shots=0), "mmlu/art": measured(1)})
    one, other = (read_experiment(name, Path("x")) for name in "ab")
    (found,) = (part for part in sections(compare(one, other, **KNOBS)) if part.title == "Benchmarks")
    assert found.rows == [("mmlu acc", "0.250 [0.150, 0.350]", "0.500 [0.400, 0.600]", "+0.250")]
    assert found.lines == ["measured in another way (shots, data or library): mmlu"]


@pytest.mark.parametrize(
    ("scores", "said"),
    [
        ([10.0, 20.0], "The answers and their scores are the same (2 rows)."),
        ([10.01, 19.0], "No difference in score can be told: B - A: -0.5 [-1.0, +0.0] points"),
        ([60.0, 90.0], "B scores higher: B - A: +60.0 [+50.0, +70.0] points"),
        ([None, 90.0], "B - A: +70.0 points: 1 row is too few to tell."),
        ([None, None], "Scores are not compared: no row to compare: of 2 and 2 rows 2 have the same id"),
    ],
)
def test_the_verdict_on_scores(scores: list[float | None], said: str) -> None:
    assert verdict(against(scores=scores))[1].startswith(said)


# ---- through the door, in a real project


def test_two_commits_of_a_project(tmp_path: Path, copy_of_finished: Callable[[Path], Path]) -> None:
    project = copy_of_finished(tmp_path / "two of them ä")
    git(project, "branch", "before")
    scores = read_parquet(project / "data/scores.parquet")
    for number, row in enumerate(scores):
        row["score"] = 50.0 + number
    (project / "data/scores.parquet").unlink()  # it is a hard link into the cache
    write_parquet(
        project / "data/scores.parquet", [{name: row[name] for name in SCORES.names} for row in scores], SCORES
    )
    params = (project / "params.yaml").read_text()
    (project / "params.yaml").write_text(params.replace("max_new_tokens: 8", "max_new_tokens: 9"))
    subprocess.run([sys.executable, "-m", "dvc", "commit", "-fq"], cwd=project, check=True)
    commit(project, "after")
    shutil.rmtree(project / "data/checkpoint")
    done = run(project, "compare", "before", "HEAD", "--json", "o.json", "--markdown", "o.md", "--html", "o.html")
    assert (done.returncode, done.stderr) == (0, "")
    figures = json.loads((project / "o.json").read_text())
    assert causes_of(figures) == {"params": {"generate.max_new_tokens": [8, 9]}}
    assert figures["not_reproduced"] == {"judge": ["data/scores.parquet"]}  # the same answers, and I made up the scores
    assert figures["wins_b"] == figures["rows"]["compared"] == len(scores)
    assert figures["a"]["commit"] == git(project, "rev-parse", "before")
    assert "B scores higher" in done.stdout
    shown = Read(MARKDOWN.render((project / "o.md").read_text(encoding="utf-8")))
    assert "generate.max_new_tokens from 8 to 9" in shown.text
    assert "<svg" in (project / "o.html").read_text(encoding="utf-8")
    lock = yaml.safe_load((project / "dvc.lock").read_text())
    (md5,) = (out["md5"] for out in lock["stages"]["judge"]["outs"] if out["path"] == "data/scores.parquet")
    lost = project / ".dvc/cache/files/md5" / md5[:2] / md5[2:]
    lost.chmod(0o644)
    lost.unlink()
    done = run(project, "compare", "before", "HEAD")
    assert done.returncode == 0
    assert "Scores are not compared: HEAD: data/scores.parquet is neither in DVC's cache nor in a remote" in " ".join(
        done.stdout.split()
    )
