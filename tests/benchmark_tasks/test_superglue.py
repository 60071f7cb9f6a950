from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stages.benchmarks.estimates import Estimate
from stages.benchmarks.suites import average, read
from stages.benchmarks.superglue import BENCHMARKS, PARTS, all_right, f1_of_answers, macro_f1
from stages.pipeline.errors import UserError
from tests.benchmark_tasks.making_b import QUICK, measured, write_jsonl, write_parquet
from tests.benchmark_tasks.oracles import OracleSubject

(SUPERGLUE,) = BENCHMARKS
ROWS = 60
CB = ["entailment", "contradiction", "neutral"]
TOWNS = "Bern and Basel are older than Bern , says Chur ."
SPANS = [(0, 3), (9, 13), (30, 33), (42, 45)]  # Bern, Basel, Bern again, Chur; ends are those of the last character


def published(at: int) -> dict[str, dict[str, Any]]:
    """A row of each task as SuperGLUE's archives have it; what is right goes by the number."""
    truth, idx = bool(at % 2), {"idx": at}
    answers = [{"text": f"answer {one}", "idx": one, "label": (at + one // 2) % 2} for one in range(4)]
    start, end = SPANS[(at % 3) + (at % 3 > 1)]
    return {
        "BoolQ": idx | {"question": "is it", "passage": f"It is {at}.", "label": truth},
        "CB": idx | {"premise": f"It is {at}.", "hypothesis": "it is", "label": CB[at % 3]},
        "COPA": idx
        | {"premise": f"It rained {at}.", "choice1": "Wet.", "choice2": "Dry.", "question": "effect", "label": at % 2},
        "MultiRC": idx
        | {
            "version": 1.1,
            "passage": {"text": f"Text {at}.", "questions": [{"question": "What?", "answers": answers, "idx": at}]},
        },
        "ReCoRD": idx
        | {
            "source": "news",
            "passage": {
                "text": f"{TOWNS}\n@highlight\nTowns {at}",
                "entities": [{"start": first, "end": last} for first, last in SPANS],
            },
            "qas": [
                {
                    "query": "The oldest is @placeholder .",
                    "answers": [{"start": start, "end": end, "text": TOWNS[start : end + 1]}],
                    "idx": at,
                }
            ],
        },
        "RTE": idx
        | {"premise": f"It is {at}.", "hypothesis": "It is.", "label": ["entailment", "not_entailment"][at % 2]},
        "WiC": idx
        | {"word": "go", "sentence1": f"They went {at}.", "sentence2": "Go!", "start1": 5, "end1": 9, "label": truth},
        "WSC": idx
        | {
            "text": f"The cat {at} slept because it was tired.",
            "target": {"span1_index": 0, "span1_text": "the cat.", "span2_index": 5, "span2_text": "it"},
            "label": truth,
        },
    }


def bring(folder: Path, count: int) -> None:
    rows = [published(at) for at in range(count)]
    for task in rows[0]:
        write_jsonl(folder / task / "val.jsonl", [row[task] for row in rows])


def gold(doc: Any) -> Any:
    return doc["right"] if "right" in doc else doc["label"]


def test_gold_has_the_best_of_every_metric_and_shuffled_gold_about_chance(tmp_path: Path) -> None:
    bring(tmp_path, ROWS)
    best = measured(SUPERGLUE, tmp_path, OracleSubject(gold))
    assert list(best) == [
        "superglue/boolq acc", "superglue/cb acc", "superglue/cb f1", "superglue/copa acc", "superglue/multirc f1a",
        "superglue/multirc em", "superglue/record f1", "superglue/record em", "superglue/rte acc", "superglue/wic acc",
        "superglue/wsc acc", "superglue average",
    ]  # fmt: skip
    assert [figure.value for figure in best.values()] == pytest.approx([1.0] * len(best))
    whole = best["superglue average"]
    assert (whole.run, whole.out_of, whole.n, whole.scope) == (8, 8, 8 * ROWS, "sample")
    chance = measured(SUPERGLUE, tmp_path, OracleSubject(gold, shuffled=True))
    for name in ("boolq acc", "copa acc", "multirc f1a", "rte acc", "wic acc", "wsc acc"):
        assert abs(chance[f"superglue/{name}"].value - 1 / 2) < 0.2
    for name in ("cb acc", "cb f1", "record f1", "record em"):
        assert abs(chance[f"superglue/{name}"].value - 1 / 3) < 0.2
    assert chance["superglue/multirc em"].value < 0.3


def test_the_average_is_the_papers() -> None:
    """BERT-large's row of the SuperGLUE paper's table of results: 69.0."""
    row = {
        "boolq": [77.4], "cb": [83.6, 75.7], "copa": [70.6], "multirc": [70.0, 24.1], "record": [72.0, 71.3],
        "rte": [71.7], "wic": [69.6], "wsc": [64.4],
    }  # fmt: skip
    values = {
        part.name: {
            metric: Estimate(value, np.array([value]), 10)
            for metric, value in zip(part.metrics, row[part.name], strict=True)
        }
        for part in PARTS
    }
    assert round(average(PARTS, values).value, 1) == 69.0


def test_macro_f1_of_cb_by_hand() -> None:
    """Right and said; classes 0: 2 TP, FN: F1 4/5; 1: TP, FP: 2/3; 2 is never right: 0."""
    pairs = [(0, 0), (0, 0), (0, 1), (1, 1), (2, 2)]
    assert macro_f1(pairs) == pytest.approx((4 / 5 + 2 / 3 + 1) / 3)
    assert macro_f1([*pairs[:4], (2, 0)]) == pytest.approx((2 * 2 / (3 + 3) + 2 / 3 + 0) / 3)
    assert macro_f1([(0, 0), (1, 1)]) == 1, "a class that does not occur counts for nothing"


def test_multirc_by_hand(tmp_path: Path) -> None:
    """Two questions; of the second, one of three answers is judged wrongly."""
    questions = [[(1, 1), (0, 0)], [(1, 0), (1, 1), (0, 0)]]
    assert f1_of_answers(questions) == pytest.approx(2 * 2 / (3 + 2))
    assert all_right(questions) == 1 / 2
    passage = {
        "text": "t",
        "questions": [
            {"question": "q", "answers": [{"text": f"says {said}", "label": right} for right, said in question]}
            for question in questions
        ],
    }
    write_jsonl(tmp_path / "MultiRC" / "val.jsonl", [{"passage": passage}])
    says = OracleSubject(lambda doc: int(doc["answer"][-1]))
    found = measured(SUPERGLUE, tmp_path, says)
    assert found["superglue/multirc f1a"].value == pytest.approx(4 / 5)
    assert found["superglue/multirc em"].value == 1 / 2
    assert found["superglue/multirc em"].n == 2
    one = measured(SUPERGLUE, tmp_path, says, QUICK._replace(limit=1))
    assert (one["superglue/multirc f1a"].n, one["superglue/multirc f1a"].value) == (1, 1), (
        "a question, with its answers"
    )


def test_a_right_answer_of_multirc_is_one_the_model_says_yes_to(tmp_path: Path) -> None:
    bring(tmp_path, 1)
    rows = SUPERGLUE.measure([OracleSubject(gold)], tmp_path, ["multirc"], QUICK, tmp_path).rows
    assert [(row.prompt.splitlines()[2:], row.response) for row in rows] == [
        ([f"Answer: answer {one}", "Is the answer correct?"], says)
        for one, says in enumerate(["no", "no", "yes", "yes"])
    ]


def test_record_by_hand(tmp_path: Path) -> None:
    """The best of all right answers counts, by SQuAD's normaliser; a name twice in the text is one choice."""
    text = "the River Thames, Oxford, Thames, the River Thames"
    spans = [(0, 15), (18, 23), (26, 31), (34, 49)]
    rows = [
        {
            "passage": {"text": text, "entities": [{"start": start, "end": end} for start, end in spans]},
            "qas": [{"query": "@placeholder rises", "answers": [{"text": answer} for answer in answers]}],
        }
        for answers in (["Thames"], ["Oxford", "river thames!"], ["Oxford"])
    ]
    write_jsonl(tmp_path / "ReCoRD" / "val.jsonl", rows)
    found = SUPERGLUE.measure([OracleSubject(lambda doc: 0)], tmp_path, [], QUICK, tmp_path)
    values = {figure.metric: figure.value for figure in found.figures}
    assert values == pytest.approx({"f1": (2 / 3 + 1 + 0) / 3, "em": 1 / 3})
    assert found.rows[0].response == "- the River Thames rises"
    (part,) = (part for part in PARTS if part.name == "record")
    rest = read(part, tmp_path)
    assert rest
    assert rest.units[0][0]["names"] == ["the River Thames", "Oxford", "Thames"]


def test_the_prompt_of_record_lists_the_highlights(tmp_path: Path) -> None:
    bring(tmp_path, 1)
    (row,) = SUPERGLUE.measure([OracleSubject(gold)], tmp_path, ["record"], QUICK, tmp_path).rows
    assert row.prompt == f"{TOWNS}\n\n  - Towns 0.\n"
    assert row.response == "- The oldest is Bern ."


def test_the_hubs_columns_give_the_same_rows(tmp_path: Path) -> None:
    bring(tmp_path / "own", 4)
    for part in PARTS:
        own = read(part, tmp_path / "own")
        assert own
        rows = [dict(doc) for unit in own.units for doc in unit]
        if part.name == "multirc":
            rows = [
                row | {"idx": {"paragraph": at // 4, "question": at // 4, "answer": at}} for at, row in enumerate(rows)
            ]
        if part.name == "record":
            text = [published(at)["ReCoRD"]["passage"]["text"] for at in range(4)]
            rows = [
                {"passage": text[at], "query": "The oldest is @placeholder .", "entities": row["names"]}
                | {"answers": row["answers"], "entity_spans": [], "idx": {"passage": at, "query": at}}
                for at, row in enumerate(rows)
            ]
        folder = "wsc.fixed" if part.name == "wsc" else part.name
        write_parquet(tmp_path / "hub" / folder / "validation-00000-of-00001.parquet", rows)
        hub = read(part, tmp_path / "hub")
        assert hub
        assert (hub.units, hub.split) == (own.units, "validation")


def test_spans_of_wsc_stand_in_its_text_as_in_the_hubs_mended_copy(tmp_path: Path) -> None:
    bring(tmp_path, 1)
    (row,) = SUPERGLUE.measure([OracleSubject(gold)], tmp_path, ["wsc"], QUICK, tmp_path).rows
    assert row.prompt == (
        "Passage: The cat 0 slept because *it* was tired.\n"
        'Question: In the passage above, does the pronoun "*it*" refer to "*The cat*"?\nAnswer:'
    )


def test_a_file_that_names_no_split_is_a_sample(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "CB.jsonl", [published(at)["CB"] for at in range(56)])
    found = measured(SUPERGLUE, tmp_path, OracleSubject(gold))["superglue/cb acc"]
    assert (found.scope, found.n) == ("sample", 56)
    assert found.protocol.endswith("; on CB.jsonl")
    (tmp_path / "CB.jsonl").rename(tmp_path / "moved.jsonl")
    (tmp_path / "CB").mkdir()
    (tmp_path / "moved.jsonl").rename(tmp_path / "CB" / "val.jsonl")
    assert measured(SUPERGLUE, tmp_path, OracleSubject(gold))["superglue/cb acc"].scope == "full"


@pytest.mark.parametrize(
    ("task", "change", "message"),
    [
        ("BoolQ", {"label": "maybe"}, r"val.jsonl:1: label 'maybe' is none of false, true"),
        ("BoolQ", {"passage": None}, r"val.jsonl:1: no 'passage'"),
        ("COPA", {"question": "why"}, r"'question' is neither cause nor effect"),
        ("MultiRC", {"passage": "text"}, r"'text' where an object is wanted"),
        ("MultiRC", {"passage": {"text": "t", "questions": []}}, r"'questions' is no list, or empty"),
        ("ReCoRD", {"passage": {"text": "t", "entities": [{"start": 0}]}}, r"no 'end'"),
        ("ReCoRD", {"qas": [{"query": "no place", "answers": [{"text": "t"}]}]}, r"a query without @placeholder"),
        ("WiC", {"start1": "x"}, r"'start1' is 'x', not a number"),
        ("WSC", {"target": {"span1_index": 99, "span1_text": "t"}}, r"no word 99 in the text"),
        ("WSC", {"target": 1}, r"'1' where an object is wanted"),
    ],
)
def test_rows_of_another_format_are_refused(tmp_path: Path, task: str, change: dict[str, Any], message: str) -> None:
    write_jsonl(tmp_path / task / "val.jsonl", [published(0)[task] | change])
    with pytest.raises(UserError, match=message):
        SUPERGLUE.find(tmp_path)
