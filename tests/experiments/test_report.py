"""The report, as a file and in a browser: what it says, also of what is missing, and that nothing in it runs."""

import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from selenium import webdriver

from stages.experiments.lineage_record import Record
from stages.experiments.report import write_report
from stages.experiments.report_facts import cautions
from stages.experiments.report_pictures import BINS, histogram_svg, score_svg
from stages.judging.responses import read_responses, write_responses
from stages.pipeline.changes import Origin
from stages.pipeline.files import read_json, read_parquet, write_json
from tests.browser import HOSTILE, check_self_contained, chromium
from tests.experiments.making import run

NOTHING = Record(None, {}, "", Origin({}, {}), {}, {}, {}, {})
SECTIONS = (
    "verdict", "data", "labels", "training", "scores", "judge", "answers", "reviews", "benchmarks", "parameters",
    "lineage",
)  # fmt: skip


@pytest.fixture(scope="module")
def project(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished project without its cache and store: only to be read."""
    folder = tmp_path_factory.mktemp("report") / "project"
    ignored = shutil.ignore_patterns("mlflow.db*", "mlartifacts", "cache")
    shutil.copytree(finished, folder, symlinks=True, ignore=ignored)
    return folder


@pytest.fixture
def own(project: Path, tmp_path: Path) -> Path:
    """A copy to change."""
    shutil.copytree(project, tmp_path / "own", symlinks=True)
    return tmp_path / "own"


def page_of(folder: Path, record: Record = NOTHING, runs: tuple[dict[str, str], ...] = ()) -> dict[str, str]:
    """The text of each section, without markup and with single spaces."""
    path = folder / "pages/report.html"
    write_report(path, folder, record, runs)
    page = path.read_text(encoding="utf-8")
    write_report(path, folder, record, runs)
    assert path.read_text(encoding="utf-8") == page
    parts = dict(re.findall(r'<section id="(\w+)">(.*?)(?=<section id=|</body>)', page, re.DOTALL))
    assert tuple(parts) == SECTIONS
    return {name: " ".join(re.sub(r"<[^>]*>", " ", part).split()) for name, part in parts.items()}


def test_it_says_what_the_files_say(project: Path) -> None:
    runs = ({"id": "f00d", "name": "judge of it", "kind": "judge"},)
    page = page_of(project, NOTHING, runs)
    read = {name: read_json(project / f"metrics/{name}.json") for name in ("format", "split", "tokens", "judge")}
    finetuned = read_json(project / "metrics/finetune.json")
    assert f"{read['format']['rows_read']} rows read, {read['format']['rows_kept']} kept" in page["data"]
    assert "talks.jsonl messages 15 0" in page["data"]
    assert f"{read['split']['train']} train, {read['split']['validation']} validation" in page["data"]
    assert "0 rows leaked" in page["data"]
    lengths = [
        np.bincount(example[example >= 0])
        for name in ("train", "validation", "test")
        for example in [np.load(project / f"data/tokens/{name}/example.npy").ravel()]
    ]
    assert f"{sum(map(len, lengths))} examples" in (project / "pages/report.html").read_text()
    train = read["tokens"]["train"]
    share = train["supervised_tokens"] / train["tokens"]
    assert (
        f"train {train['examples']} {train['tokens']:_} {share:_.0%} ".replace("_", " ").replace("%", " %")
        in page["labels"]
    )
    assert f"{finetuned['best_validation_loss']:.3f} at its best" in page["training"]
    assert f"{read['judge']['rows']} test rows" in page["scores"]
    assert (
        f"AUC by kind of bad answer other row {read['judge']['judge_auc_by_corruption']['other_row']:.2f}"
        in page["judge"]
    )
    assert "learning_rate 1e-2" in page["parameters"]
    assert "judge of it f00d" in page["lineage"]
    for name in ("data", "labels", "training", "scores", "judge", "answers", "parameters"):
        assert "Not to be shown" not in page[name], page[name]


def test_the_best_and_the_worst_answers(own: Path) -> None:
    rows = read_parquet(own / "data/scores.parquet")
    table = pa.Table.from_pylist([row | {"score": float(at)} for at, row in enumerate(rows)])
    pq.write_table(table, own / "data/scores.parquet")
    page = page_of(own)["answers"]
    best, worst = page.split("Worst by score")
    count = len(rows)
    assert re.findall(r"\b[0-9a-f]{16}\b", best) == [row["id"] for row in rows[: count - 5 : -1]]
    assert re.findall(r"\b[0-9a-f]{16}\b", worst) == [row["id"] for row in rows[:4]]


def test_the_example_is_the_one_of_median_length_with_its_loss(project: Path) -> None:
    page_of(project)
    page = (project / "pages/report.html").read_text(encoding="utf-8")
    (shown,) = re.findall(r'<div class="tokens">(.*?)</div>', page, re.DOTALL)
    learned = re.findall(r'<span class="loss"[^>]*>(.*?)</span>', shown, re.DOTALL)
    assert learned[-1] == "&lt;|im_end|&gt;"
    example = np.load(project / "data/tokens/train/example.npy").ravel()
    sizes = np.bincount(example[example >= 0])
    assert f", {int(np.sort(sizes)[len(sizes) // 2])} tokens, " in page


@pytest.mark.parametrize("kept", [(), ("metrics/format.json",), ("metrics/losses.csv", "metrics/finetune.json")])
def test_what_has_not_run_yet_says_so(project: Path, tmp_path: Path, kept: tuple[str, ...]) -> None:
    for name in ("params.yaml", *kept):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(project / name, tmp_path / name)
    page = page_of(tmp_path)
    assert "The answers have not been judged yet." in page["verdict"]
    assert "metrics/judge.json: not found; run `dvc repro` to make it" in page["scores"].replace("\\", "/")
    assert "None yet: read and score answers" in page["reviews"]
    assert ("not found" in page["training"]) == ("metrics/finetune.json" not in kept)
    assert "metrics/split.json: not found" in page["data"].replace("\\", "/")
    assert "not there yet" in page["lineage"]


def test_damaged_and_foreign_files_cost_their_section_alone(own: Path) -> None:
    (own / "metrics/judge.json").write_text("{")
    (own / "metrics/losses.csv").write_text("a,b\n1,2\n")
    (own / "data/scores.parquet").write_bytes(b"PAR1")
    write_json(own / "metrics/split.json", {"train": 5, "of": "another version"})
    (own / "data/tokens/train/labels.npy").write_bytes(b"")
    page = page_of(own)
    assert "not valid JSON" in page["scores"]
    assert "losses.csv: has no column epoch" in page["training"]
    assert "scores.parquet: damaged" in page["answers"]
    assert "5 train, \u2013 validation" in page["data"]
    assert "cannot be read" in page["labels"]
    assert "learning_rate" in page["parameters"]
    assert "Traceback" not in str(page)


def test_reviews_benchmarks_and_other_judges(own: Path) -> None:
    judge = {"score": 71.25, "score_low": 60.0, "score_high": 80.0, "base_score": 40.0, "judge_auc": 0.61}
    figures = read_json(own / "metrics/judge.json") | {"other_judges": {"gpt<b>": judge | {"judge_reliable": 0}}}
    write_json(own / "metrics/judge.json", figures)
    value = {"value": 0.4321, "low": 0.4, "high": 0.5, "n": 120}
    benchmark = {"shots": 5, "metrics": {"acc": {"fine-tuned": value}}}
    write_json(own / "metrics/benchmark.json", {f"mmlu{'/x' * at}": benchmark for at in range(2)})
    beside = {"judge_score": 55.5, "spearman": 0.7, "kappa_weighted": None}
    mine = {"rows": 9, "score": 62.5, "wins": 3, "losses": 2, "ties": 1, "judges": {"embedded": beside}}
    write_json(own / "metrics/reviews.json", {"reviewers": {"Ada <i>": mine}})
    page = page_of(own)
    assert "gpt&lt;b&gt; 71.2 60.0 to 80.0 40.0 \u2013 0.61 no" in page["judge"]
    assert "mmlu/x acc fine-tuned 0.432 0.400 to 0.500 120 5" in page["benchmarks"]
    assert "Ada &lt;i&gt; 9 62.5 embedded 55.5 0.70 \u2013 3 \u2013 2 \u2013 1" in page["reviews"]


FINE: dict[str, Any] = {
    "scores": {"judge_reliable": 1, "invalid_fraction": 0.0, "win_rate_low": 0.6, "win_rate_high": 0.9},
    "split": {"leaked_rows": 0, "pairs_not_compared": 0},
    "labels": {"train": {"truncated": 0, "dropped": 0, "examples": 9, "eos_trained_fraction": 1.0}},
    "training": {"overfit_epoch": 1.0, "overfit_confirmed": 1},
    "answers": {"cut": 0, "rows": 9},
}


@pytest.mark.parametrize(
    ("section", "change", "words"),
    [
        ("scores", {"judge_reliable": 0}, "cannot be relied on"),
        ("scores", {"invalid_fraction": 0.125}, "12.5% of the judge's verdicts"),
        ("scores", {"judge_injection_gain": 9.0}, "demands full marks gains 9.0 points"),
        ("scores", {"win_rate_low": 0.45}, "the base model may be as good"),
        ("split", {"leaked_rows": 3}, "3 rows have a near-duplicate in another split"),
        ("split", {"pairs_not_compared": 7}, "7 pairs"),
        ("labels", {"train": FINE["labels"]["train"] | {"truncated": 2}}, "train: 2 of 9 examples were truncated"),
        ("labels", {"train": FINE["labels"]["train"] | {"eos_trained_fraction": 0.5}}, "Only 50.0% of the train"),
        ("training", {"overfit_epoch": -1, "overfit_confirmed": 0}, "No overfitting was seen"),
        ("training", {"overfit_confirmed": 0}, "is not confirmed"),
        ("answers", {"cut": 4}, "4 of 9 answers were cut"),
        ("scores", {"rows": 4}, "Only 4 test rows"),
    ],
)
def test_what_to_beware_of_is_said(section: str, change: dict[str, Any], words: str) -> None:
    assert cautions(FINE, NOTHING) == []
    (said,) = cautions(FINE | {section: FINE[section] | change}, NOTHING)
    assert words in said


def test_what_differs_from_the_record_is_said(project: Path) -> None:
    differs = {"data/raw": "modified", "data/tokens": "not in cache"}
    record = NOTHING._replace(changed=differs, elsewhere={"torch": ("1.0", "2.0")}, environment={"torch": "1.0"})
    page = page_of(project, record)
    assert "Changed since the last dvc repro: data/raw (modified)." in page["verdict"]
    assert "made in another environment: torch 1.0, here 2.0" in page["verdict"]
    assert "not checked, since DVC's cache lacks it: data/tokens" in page["lineage"].replace("&#39;", "'")
    assert "torch 1.0 (here 2.0)" in page["lineage"]


# ---- pictures


@pytest.mark.parametrize("values", [[1], [5] * 9, list(range(200)), [3] * 500 + [90_000], [0, 1, 2, 2]])
def test_a_histogram_counts_every_example(values: list[int]) -> None:
    picture = histogram_svg(np.array(values))
    bars = re.findall(r"<title>(\d+) to (\d+) tokens: (\d+)</title>", picture)
    assert len(bars) <= BINS
    for low, high, count in bars:
        assert sum(int(low) <= value <= int(high) for value in values) == int(count)
    assert sum(int(count) for _, _, count in bars) == len(values)
    assert all(0 <= float(x) <= 300 for x in re.findall(r'x="([\d.]+)"', picture))


def test_a_score_without_an_interval() -> None:
    assert 'cx="106.0"' in score_svg(50.0, None, None, None)
    assert "stroke-opacity" not in score_svg(50.0, None, None, None)
    assert "50.0 (40.0 to 60.0), base model 0.0" in score_svg(50.0, 40.0, 60.0, 0.0)


# ---- through the command, and in a browser


def test_the_command(copy_of_finished: Callable[[Path], Path], tmp_path: Path) -> None:
    project = copy_of_finished(tmp_path / "own project")
    done = run(project, "report", "--html", tmp_path / "out/page.html")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", f"report: written to {tmp_path}/out/page.html\n")
    page = (tmp_path / "out/page.html").read_text(encoding="utf-8")
    assert "all as recorded" in page
    assert not (project / "metrics/report.html").exists()
    assert not (project / "mlflow.db").exists()
    (tmp_path / "empty").mkdir()
    nowhere = run(tmp_path / "empty", "report")
    assert (nowhere.returncode, list((tmp_path / "empty").iterdir())) == (2, [])
    assert nowhere.stderr == "error: params.yaml: not found; run from the folder that holds dvc.yaml\n"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    with chromium(tmp_path_factory.mktemp("saved")) as driver:
        yield driver


def make_hostile(folder: Path) -> None:
    """Hostile text wherever a text of a user or a model is shown."""
    rows, about = read_responses(folder / "data/responses.parquet")
    texts = {"instruction": HOSTILE[0], "input": HOSTILE[1], "reference": HOSTILE[2], "response": HOSTILE[3]}
    bad = [row._replace(category=HOSTILE[4], base_response=HOSTILE[5], **texts) for row in rows]
    write_responses(folder / "data/responses.parquet", bad, about)
    judged = read_json(folder / "metrics/judge.json")
    own = next(iter(judged["by_category"].values()))
    write_json(
        folder / "metrics/judge.json", judged | {"judge": HOSTILE[1], "by_category": dict.fromkeys(HOSTILE, own)}
    )
    counts = read_json(folder / "metrics/format.json")
    keys = {"schema": HOSTILE[0], "rows": 1, "rejected": 1, "ignored_keys": dict.fromkeys(HOSTILE, 1)}
    counts |= {"files": dict.fromkeys(HOSTILE, keys), "rejected_by_reason": dict.fromkeys(HOSTILE, 1)}
    write_json(folder / "metrics/format.json", counts)
    write_json(folder / "data/base_model/origin.json", dict.fromkeys(("source", "sha256", "licence"), HOSTILE[0]))
    params = {"judge": {"rubric": HOSTILE[1], HOSTILE[0]: HOSTILE}, HOSTILE[2]: 1}
    (folder / "params.yaml").write_text(json.dumps(params))


@pytest.mark.parametrize("width", [375, 1400])
def test_in_a_browser_nothing_runs_and_nothing_is_asked_for(own: Path, browser: webdriver.Chrome, width: int) -> None:
    make_hostile(own)
    record = NOTHING._replace(
        base_model=read_json(own / "data/base_model/origin.json"), unknown=HOSTILE[0], changed=None
    )
    write_report(own / "report.html", own, record, [{"id": "1", "name": HOSTILE[0], "kind": HOSTILE[1]}])
    check_self_contained(browser, own / "report.html", width)
    shown = browser.execute_script("return document.querySelector('.answer .asked').textContent")
    assert shown == HOSTILE[0]
    styled = browser.execute_script("return getComputedStyle(document.querySelector('.figures')).display")
    assert styled == "grid", "the policy shuts the page's own style out"
