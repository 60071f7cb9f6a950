import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stages.benchmarks.estimates import Estimate
from stages.benchmarks.glue import BENCHMARKS, PARTS, expected_score, f1, pearson, spearman
from stages.benchmarks.suites import average, read
from stages.pipeline.errors import UserError
from tests.benchmark_tasks.making_b import QUICK, measured, write, write_jsonl, write_parquet
from tests.benchmark_tasks.oracles import OracleSubject

(GLUE,) = BENCHMARKS
ROWS = 60
MNLI = ["entailment", "neutral", "contradiction"]
TREES = ["(parse", "(parse", "(parse", "(parse"]

# A row of each task, in the columns of GLUE's archives: from a number to fields; the label is the number, modulo.
HEADERS = {
    "CoLA/dev": [],
    "SST-2/dev": ["sentence", "label"],
    "MRPC/dev": ["Quality", "#1 ID", "#2 ID", "#1 String", "#2 String"],
    "STS-B/dev": ["index", "genre", "filename", "year", "old_index", "source1", "source2", "sentence1", "sentence2",
                  "score"],
    "QQP/dev": ["id", "qid1", "qid2", "question1", "question2", "is_duplicate"],
    "MNLI/dev_matched": ["index", "promptID", "pairID", "genre", "sentence1_binary_parse", "sentence2_binary_parse",
                         "sentence1_parse", "sentence2_parse", "sentence1", "sentence2", "label1", "gold_label"],
    "QNLI/dev": ["index", "question", "sentence", "label"],
    "RTE/dev": ["index", "sentence1", "sentence2", "label"],
    "WNLI/dev": ["index", "sentence1", "sentence2", "label"],
}  # fmt: skip
HEADERS["MNLI/dev_mismatched"] = HEADERS["MNLI/dev_matched"]


def fields(task: str, at: int) -> list[str]:
    one, other, binary = f'One "{at}', f"other {at}.", str(at % 2)
    entails = ["entailment", "not_entailment"][at % 2]
    return {
        "CoLA": ["gj04", binary, "", one],
        "SST-2": [one, binary],
        "MRPC": [binary, "1", "2", one, other],
        "STS-B": [str(at), "g", "f", "2012", "1", "n", "n", one, other, f"{at % 6}.000"],
        "QQP": [str(at), "1", "2", one, other, binary],
        "MNLI": [str(at), "1", "1n", "fiction", *TREES, one, other, "neutral", MNLI[at % 3]],
        "QNLI": [str(at), one, other, entails],
        "RTE": [str(at), one, other, entails],
        "WNLI": [str(at), one, other, binary],
    }[task]


def tsv(*rows: list[str]) -> str:
    return "".join("\t".join(row) + "\n" for row in rows if row)


def bring(folder: Path, count: int) -> None:
    for name, header in HEADERS.items():
        rows = [fields(name.split("/")[0], at) for at in range(count)]
        write(folder / f"{name}.tsv", tsv(header, *rows))


def gold(doc: Any) -> Any:
    return doc["nearest"] if "nearest" in doc else doc["label"]


def test_gold_has_the_best_of_every_metric_and_shuffled_gold_about_chance(tmp_path: Path) -> None:
    bring(tmp_path, ROWS)
    best = measured(GLUE, tmp_path, OracleSubject(gold))
    assert list(best) == [
        "glue/cola mcc", "glue/sst2 acc", "glue/mrpc acc", "glue/mrpc f1", "glue/stsb pearson", "glue/stsb spearman",
        "glue/qqp acc", "glue/qqp f1", "glue/mnli acc", "glue/mnli_mismatched acc", "glue/qnli acc", "glue/rte acc",
        "glue/wnli acc", "glue average",
    ]  # fmt: skip
    assert [figure.value for figure in best.values()] == pytest.approx([1.0] * len(best))
    whole = best["glue average"]
    assert (whole.run, whole.out_of, whole.n, whole.scope) == (9, 9, 10 * ROWS, "sample")
    chance = measured(GLUE, tmp_path, OracleSubject(gold, shuffled=True))
    for name in ("glue/cola mcc", "glue/stsb pearson", "glue/stsb spearman"):
        assert abs(chance[name].value) < 0.3
    for name in ("sst2 acc", "mrpc acc", "mrpc f1", "qqp acc", "qqp f1", "qnli acc", "rte acc", "wnli acc"):
        assert abs(chance[f"glue/{name}"].value - 1 / 2) < 0.2
    for name in ("mnli acc", "mnli_mismatched acc"):
        assert abs(chance[f"glue/{name}"].value - 1 / 3) < 0.2


def test_metrics_by_hand(tmp_path: Path) -> None:
    """What the model says is the last letter of what it reads."""
    said = [("1", "1"), ("1", "1"), ("1", "0"), ("0", "1"), ("0", "0")]  # right, said: 2 TP, FN, FP, TN
    write(tmp_path / "CoLA" / "dev.tsv", tsv(*(["g", right, "*", f"Says {says}"] for right, says in said)))
    write(
        tmp_path / "MRPC" / "dev.tsv",
        tsv(HEADERS["MRPC/dev"], *([right, "1", "2", "x", f"Says {says}"] for right, says in said)),
    )
    digits = [("1.0", "1"), ("2.0", "3"), ("3.0", "2"), ("4.0", "4")]
    rows = [{"sentence1": "x", "sentence2": f"Says {says}", "label": float(score)} for score, says in digits]
    write_jsonl(tmp_path / "stsb" / "validation.jsonl", rows)
    found = measured(GLUE, tmp_path, OracleSubject(lambda doc: int((doc.get("sentence") or doc["sentence2"])[-1])))
    assert found["glue/cola mcc"].value == pytest.approx((2 * 1 - 1 * 1) / math.sqrt(3 * 3 * 2 * 2))
    assert found["glue/mrpc acc"].value == pytest.approx(3 / 5)
    assert found["glue/mrpc f1"].value == pytest.approx(4 / 6)
    assert found["glue/stsb pearson"].value == pytest.approx(0.8)
    assert found["glue/stsb spearman"].value == pytest.approx(0.8)
    assert "glue average" not in found, "six tasks are missing"


def test_correlations_of_ties_constants_and_single_rows() -> None:
    assert spearman([(1, 1), (2, 1), (3, 2), (4, 2)]) == pytest.approx(4 / math.sqrt(20))
    assert pearson([(0, 0), (1, 1), (2, 4)]) == pytest.approx(4 / math.sqrt(2 * 26 / 3))
    for flat in ([(1, 2), (2, 2), (3, 2)], [(2, 1), (2, 3)], [(1, 1)]):
        assert pearson(flat) == spearman(flat) == 0
    assert pearson([(1, 3), (2, 2), (3, 1)]) == pytest.approx(-1)
    assert f1([(0, 0), (0, 0)]) == 0


def test_a_pairs_score_is_the_mean_of_the_digits_by_their_likelihoods() -> None:
    assert expected_score([math.log(0.1)] * 2 + [math.log(0.2)] * 4) == pytest.approx(0.1 + 0.2 * (2 + 3 + 4 + 5))
    assert expected_score([-1000.0, -1000.0, -2000.0]) == pytest.approx(0.5), "however unlikely all of them are"


def test_the_average_is_the_leaderboards() -> None:
    """BERT-large's row of gluebenchmark.com: 80.5; its two accuracies of MNLI count as one task."""
    row = {
        "cola": [60.5], "sst2": [94.9], "mrpc": [85.4, 89.3], "stsb": [87.6, 86.5], "qqp": [89.3, 72.1],
        "mnli": [86.7], "mnli_mismatched": [85.9], "qnli": [92.7], "rte": [70.1], "wnli": [65.1],
    }  # fmt: skip
    values = {
        part.name: {
            metric: Estimate(value, np.array([value]), 10)
            for metric, value in zip(part.metrics, row[part.name], strict=True)
        }
        for part in PARTS
    }
    found = average(PARTS, values)
    assert (round(found.value, 1), found.n) == (80.5, 100)


def test_the_hubs_columns_and_jiants_give_the_same_rows(tmp_path: Path) -> None:
    bring(tmp_path / "tsv", 6)
    for part in PARTS:
        own = read(part, tmp_path / "tsv")
        assert own
        assert (own.split, len(own.units)) == ("validation", 6)
        rows = [{key: value for key, value in doc.items() if key not in ("score", "nearest")} for (doc,) in own.units]
        if part.name == "stsb":
            rows = [row | {"label": doc["score"]} for row, (doc,) in zip(rows, own.units, strict=True)]
        split = {"mnli": "validation_matched", "mnli_mismatched": "validation_mismatched"}.get(part.name, "validation")
        path = tmp_path / "hub" / (part.task or part.name) / f"{split}-00000-of-00002.parquet"
        write_parquet(path, rows[:4])
        write_parquet(path.with_name(f"{split}-00001-of-00002.parquet"), rows[4:])
        hub = read(part, tmp_path / "hub")
        assert hub
        assert hub.units == own.units
    write_jsonl(
        tmp_path / "jiant" / "mnli" / "mnli_val.jsonl", [{"premise": "p", "hypothesis": "h", "label": "neutral"}]
    )
    write_jsonl(tmp_path / "jiant" / "sst2" / "val.jsonl", [{"text": "t", "label": "1"}])
    assert GLUE.find(tmp_path / "jiant").rows == {"sst2": 1, "mnli": 1}


def test_full_is_the_published_number_of_rows_of_the_validation_split(tmp_path: Path) -> None:
    rows = [fields("WNLI", at) for at in range(71)]
    write(tmp_path / "a" / "WNLI" / "dev.tsv", tsv(HEADERS["WNLI/dev"], *rows))
    write(tmp_path / "b" / "WNLI" / "train.tsv", tsv(HEADERS["WNLI/dev"], *rows))
    assert measured(GLUE, tmp_path / "a", OracleSubject(gold))["glue/wnli acc"].scope == "full"
    cut = measured(GLUE, tmp_path / "a", OracleSubject(gold), QUICK._replace(limit=70))["glue/wnli acc"]
    assert (cut.scope, cut.n) == ("sample", 70)
    train = measured(GLUE, tmp_path / "b", OracleSubject(gold))["glue/wnli acc"]
    assert train.scope == "sample"
    assert train.protocol.endswith("; on train.tsv")


def test_only_what_is_wanted_runs(tmp_path: Path) -> None:
    bring(tmp_path, 4)
    assert list(measured(GLUE, tmp_path, OracleSubject(gold), wanted=["rte", "mnli"])) == [
        "glue/mnli acc",
        "glue/rte acc",
    ]


def test_torn_rows_of_qqp_are_left_out_and_counted(tmp_path: Path) -> None:
    write(
        tmp_path / "QQP" / "dev.tsv",
        tsv(HEADERS["QQP/dev"], fields("QQP", 0), ["7", "1", "2", "half a"], fields("QQP", 1)),
    )
    found = measured(GLUE, tmp_path, OracleSubject(gold))["glue/qqp acc"]
    assert found.n == 2
    assert found.protocol.endswith("; 1 rows with missing fields left out")


def test_other_files_of_the_archives_are_no_validation_split(tmp_path: Path) -> None:
    bring(tmp_path, 4)
    write(tmp_path / "MRPC" / "dev_ids.tsv", "1\t2\n")
    write(tmp_path / "MRPC" / "msr_paraphrase_test.txt", "x\n")
    write(tmp_path / "RTE" / "test.tsv", "index\tsentence1\tsentence2\n")
    write(tmp_path / "RTE" / "train.tsv", "index\n")
    write(tmp_path / "STS-B" / "original" / "sts-dev.tsv", "x\n")
    assert set(GLUE.find(tmp_path).rows.values()) == {4}


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("RTE/dev.tsv", "index\tsentence1\tlabel\n0\ta\tentailment\n", r"dev.tsv:2: no 'sentence2'; there are index"),
        ("RTE/dev.tsv", "index\tsentence1\tsentence2\tlabel\n0\ta\tb\tyes\n", r"dev.tsv:2: label 'yes' is none of"),
        ("RTE/dev.tsv", "index\tsentence1\tsentence2\tlabel\n", r"dev.tsv: holds no row"),
        ("RTE/dev.tsv", "", r"dev.tsv: holds no row"),
        ("RTE/dev.jsonl", "", r"dev.jsonl: empty"),
        (
            "RTE/dev.jsonl",
            '{"sentence1": 1, "sentence2": "b", "label": 0}\n',
            r"dev.jsonl:1: 'sentence1' is 1, not a text",
        ),
        (
            "RTE/dev.jsonl",
            '{"sentence1": "a", "sentence2": "b", "label": -1}\n',
            r"label '-1' .* take the validation split",
        ),
        ("RTE/dev.jsonl", "[1]\n", r"dev.jsonl:1: list where an object"),
        ("RTE/dev.jsonl", "{\n", r"dev.jsonl:1: broken JSON"),
        ("STS-B/dev.jsonl", '{"sentence1": "a", "sentence2": "b", "label": -1.0}\n', r"score -1 is not from 0 to 5"),
        ("STS-B/dev.jsonl", '{"sentence1": "a", "sentence2": "b", "label": "x"}\n', r"'score' is 'x', not a number"),
        ("QQP/dev.tsv", "id\tqid1\n1\n", r"dev.tsv: no row has all fields"),
    ],
)
def test_files_of_another_format_are_refused(tmp_path: Path, name: str, text: str, message: str) -> None:
    write(tmp_path / name, text)
    with pytest.raises(UserError, match=message):
        GLUE.find(tmp_path)


def test_two_files_of_one_split_no_file_and_shots_are_refused(tmp_path: Path) -> None:
    bring(tmp_path, 2)
    write_jsonl(tmp_path / "RTE" / "val.jsonl", [{"sentence1": "a", "sentence2": "b", "label": 0}])
    with pytest.raises(UserError, match=r"dev.tsv and val.jsonl: two files of one split; keep one"):
        GLUE.find(tmp_path)
    with pytest.raises(UserError, match="holds no task of GLUE"):
        measured(GLUE, tmp_path / "nothing", OracleSubject(gold))
    with pytest.raises(UserError, match="glue is measured without shots"):
        measured(GLUE, tmp_path, OracleSubject(gold), QUICK._replace(shots={"glue": 3}))
