"""SuperGLUE (Wang et al. 2019, arXiv 1905.00537): eight tasks, each with its official metrics, on the validation split.

Six are lm-eval's own configurations. MultiRC and ReCoRD are ours: lm-eval's MultiRC has its labels the wrong way round
and neither official metric, its ReCoRD imports what newer transformers lack.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from stages.benchmarks.benchmark import Settings, Source
from stages.benchmarks.estimates import Estimate, estimate
from stages.benchmarks.glue import BINARY, ENTAILS, Pair, f1
from stages.benchmarks.suites import Part, Suite, Unit, plain
from stages.benchmarks.tables import Line, label_of, number_of, text_of, value_of
from stages.judging.reference_metrics import exact_match, token_f1
from stages.pipeline.errors import UserError

if TYPE_CHECKING:
    from stages.benchmarks.harness import Measured

TRUTH = {"false": 0, "true": 1}
FORMAT = "put the file in the publisher's format"

# ---- CB


def macro_f1(pairs: Sequence[Pair]) -> float:
    """Mean of each class's F1, over the classes that occur: in all rows of CB that is all three."""
    classes = sorted({int(one) for pair in pairs for one in pair})
    each = [f1([(int(gold == one), int(predicted == one)) for gold, predicted in pairs]) for one in classes]
    return sum(each) / len(each)


# ---- MultiRC


def _multirc_units(lines: Sequence[Line]) -> list[Unit]:
    """All answers of a question together; the publisher's rows hold a passage each, the hub's an answer each."""
    if all("passage" in line.value for line in lines):
        return [unit for line in lines for unit in _of_passage(line)]
    units: dict[tuple[int, int], Unit] = {}
    for line in lines:
        index = value_of(line, "idx")
        if not isinstance(index, Mapping):
            raise UserError(f"{line.where}: 'idx' tells no paragraph and question; {FORMAT}")
        own = Line(line.where, index)
        key = int(number_of(own, "paragraph")), int(number_of(own, "question"))
        units.setdefault(key, []).append(_answer(text_of(line, "paragraph"), text_of(line, "question"), line))
    return list(units.values())


def _of_passage(line: Line) -> list[Unit]:
    passage = _object(line.value["passage"], line.where)
    text = text_of(passage, "text")
    units = []
    for question in _objects(passage, "questions"):
        asked = text_of(question, "question")
        units.append([_answer(text, asked, answer) for answer in _objects(question, "answers")])
    return units


def _answer(paragraph: str, question: str, answer: Line) -> dict[str, Any]:
    label = label_of(answer, BINARY | TRUTH, "label")
    return {"paragraph": paragraph, "question": question, "answer": text_of(answer, "answer", "text"), "label": label}


def _multirc() -> dict[str, Any]:
    return {
        "output_type": "multiple_choice",
        "doc_to_text": "{{paragraph}}\nQuestion: {{question}}\nAnswer: {{answer}}\nIs the answer correct?",
        "doc_to_choice": ["no", "yes"],
        "doc_to_target": "label",
        "process_results": _judge_answer,
        "metric_list": [
            {"metric": "right", "aggregation": "mean", "higher_is_better": True},
            {"metric": "pair", "aggregation": f1, "higher_is_better": True},
        ],
    }


def _judge_answer(doc: Mapping[str, Any], results: Sequence[tuple[float, bool]]) -> dict[str, Any]:
    no, yes = (likelihood for likelihood, _ in results)
    said = int(yes > no)
    return {"right": float(said == doc["label"]), "pair": (doc["label"], said)}


def _multirc_estimates(measured: "Measured", units: Sequence[Unit], settings: Settings) -> dict[str, Estimate]:
    """Over questions, whose answers stay together: they are no independent rows."""
    pairs = iter(measured.values["pair"])
    questions: list[list[Pair]] = [[next(pairs) for _ in unit] for unit in units]
    values = {"f1a": f1_of_answers, "em": all_right}
    return {
        name: estimate(questions, function, resamples=settings.resamples, seed=settings.seed)
        for name, function in values.items()
    }


def f1_of_answers(questions: Sequence[Sequence[Pair]]) -> float:
    """F1 of right answers over all answers of all questions (F1a of Khashabi et al. 2018)."""
    return f1([pair for question in questions for pair in question])


def all_right(questions: Sequence[Sequence[Pair]]) -> float:
    """Share of questions of which every answer was judged rightly (EM)."""
    return sum(all(gold == said for gold, said in question) for question in questions) / len(questions)


# ---- ReCoRD


def _record_units(lines: Sequence[Line]) -> list[Unit]:
    """One row a query; the publisher's rows hold a passage with its queries, the hub's a query each."""
    units = []
    for line in lines:
        if isinstance(line.value.get("passage"), Mapping):
            passage = _object(line.value["passage"], line.where)
            text = text_of(passage, "text")
            entities = [_span(text, entity) for entity in _objects(passage, "entities")]
            for query in _objects(line, "qas"):
                answers = [text_of(answer, "text") for answer in _objects(query, "answers")]
                units.append([_query(text, text_of(query, "query"), entities, answers, query.where)])
        else:
            entities, answers = ([str(one) for one in value_of(line, name)] for name in ("entities", "answers"))
            units.append([_query(text_of(line, "passage"), text_of(line, "query"), entities, answers, line.where)])
    return units


def _span(text: str, entity: Line) -> str:
    """Its end is that of the last character, not behind it."""
    return text[int(number_of(entity, "start")) : int(number_of(entity, "end")) + 1]


def _query(text: str, query: str, entities: Sequence[str], answers: Sequence[str], where: str) -> dict[str, Any]:
    names = list(dict.fromkeys(entities))
    if "@placeholder" not in query or not names or not answers:
        raise UserError(f"{where}: a query without @placeholder, entities or answers; {FORMAT}")
    right = [at for at, name in enumerate(names) if best(exact_match, name, answers) == 1]
    passage, *highlights = text.strip().split("\n@highlight\n")
    return {
        "text": passage + "\n\n" + "".join(f"  - {highlight}.\n" for highlight in highlights),
        "choices": [f"  - {query.replace('@placeholder', name)}" for name in names],
        "names": names,
        "answers": list(answers),
        "right": right[0] if right else -1,
    }


def best(metric: Callable[[str, str], float], prediction: str, answers: Sequence[str]) -> float:
    """The metric by the right answer that suits best (metric_max_over_ground_truths of SQuAD's and ReCoRD's script)."""
    return max(metric(prediction, answer) for answer in answers)


def _record() -> dict[str, Any]:
    return {
        "output_type": "multiple_choice",
        "doc_to_text": "text",
        "doc_to_choice": "choices",
        "doc_to_target": "right",
        "target_delimiter": "",
        "process_results": _judge_entity,
        "metric_list": [{"metric": name, "aggregation": "mean", "higher_is_better": True} for name in ("f1", "em")],
    }


def _judge_entity(doc: Mapping[str, Any], results: Sequence[tuple[float, bool]]) -> dict[str, float]:
    likelihoods = [likelihood for likelihood, _ in results]
    chosen = doc["names"][likelihoods.index(max(likelihoods))]
    return {"f1": best(token_f1, chosen, doc["answers"]), "em": best(exact_match, chosen, doc["answers"])}


# ---- WiC, WSC and COPA


def _wic_units(lines: Sequence[Line]) -> list[Unit]:
    units = []
    for line in lines:
        doc: dict[str, Any] = {name: text_of(line, name) for name in ("sentence1", "sentence2")}
        doc |= {name: int(number_of(line, name)) for name in ("start1", "end1")}
        units.append([doc | {"label": label_of(line, TRUTH, "label")}])
    return units


def _wsc_units(lines: Sequence[Line]) -> list[Unit]:
    units = []
    for line in lines:
        target = _object(line.value["target"], line.where) if "target" in line.value else line
        text = text_of(line, "text")
        doc: dict[str, Any] = {"text": text, "label": label_of(line, TRUTH, "label")}
        for span in ("span1", "span2"):
            index = int(number_of(target, f"{span}_index"))
            if not 0 <= index < len(text.split()):
                raise UserError(f"{line.where}: no word {index} in the text; {FORMAT}")
            doc |= {f"{span}_index": index, f"{span}_text": _as_in(text, index, text_of(target, f"{span}_text"))}
        units.append([doc])
    return units


def _as_in(text: str, index: int, span: str) -> str:
    """A span as the text has it: the publisher's differ in the first letter's case, a final point or a line break.

    The hub's copy wsc.fixed is mended in the same way.
    """
    if span in text or not span:
        return span
    first = span[0].lower() if text.split()[index][0].islower() else span[0].upper()
    return (first + span[1:]).rstrip(".").replace("\n", " ")


def _copa_units(lines: Sequence[Line]) -> list[Unit]:
    units = plain({name: (name,) for name in ("premise", "choice1", "choice2", "question")}, ("label",), BINARY)(lines)
    for (doc,), line in zip(units, lines, strict=True):
        if doc["question"] not in ("cause", "effect") or not (doc["choice1"] and doc["choice2"]):
            raise UserError(f"{line.where}: 'question' is neither cause nor effect, or a choice is empty; {FORMAT}")
    return units


def _object(value: Any, where: str) -> Line:
    if not isinstance(value, Mapping):
        raise UserError(f"{where}: {str(value)[:40]!r} where an object is wanted; {FORMAT}")
    return Line(where, value)


def _objects(line: Line, name: str) -> list[Line]:
    values = value_of(line, name)
    if not isinstance(values, Sequence) or isinstance(values, str) or not values:
        raise UserError(f"{line.where}: {name!r} is no list, or empty; {FORMAT}")
    return [_object(value, line.where) for value in values]


# ---- the suite


def _stock(path: str) -> dict[str, Any]:
    from stages.benchmarks.harness import stock

    config = stock(f"super_glue/{path}/default.yaml")
    for metric in config["metric_list"]:
        if metric["metric"] == "f1":  # only CB has one
            metric |= {"aggregation": macro_f1, "higher_is_better": True}
    return config


def _part(name: str, folder: str, published: int, units: Any, metrics: tuple[str, ...] = ("acc",)) -> Part:
    protocol = "lm-eval's prompt without shots; the likeliest of the label's words"
    if name == "copa":
        protocol = "lm-eval's prompt without shots; the likelier of both continuations"
    return Part(name, folder, published, units, partial(_stock, name), metrics, protocol)


_PREMISE = {"premise": ("premise",), "hypothesis": ("hypothesis",)}

PARTS = (
    _part("boolq", "BoolQ", 3270, plain({"passage": ("passage",), "question": ("question",)}, ("label",), TRUTH)),
    _part(
        "cb", "CB", 56, plain(_PREMISE, ("label",), {"entailment": 0, "contradiction": 1, "neutral": 2}), ("acc", "f1")
    ),
    _part("copa", "COPA", 100, _copa_units),
    Part(
        "multirc", "MultiRC", 953, _multirc_units, _multirc, ("f1a", "em"),
        "our prompt without shots; each answer is right where yes is likelier than no; rows are questions",
        estimates=_multirc_estimates,
    ),
    Part(
        "record", "ReCoRD", 10000, _record_units, _record, ("f1", "em"),
        "passage without shots; the entity in whose place the query is likeliest",
    ),
    _part("rte", "RTE", 277, plain(_PREMISE, ("label",), ENTAILS)),
    _part("wic", "WiC", 638, _wic_units),
    _part("wsc", "WSC", 104, _wsc_units),
)  # fmt: skip
"""Rows of the validation splits: aps/super_glue on the hub; questions of MultiRC, queries of ReCoRD."""

BENCHMARKS = (
    Suite(
        name="superglue",
        title="SuperGLUE",
        about="eight harder tasks of understanding text, without shots, by likelihood of the answers; official metrics",
        layout="<Task>/val.jsonl as in SuperGLUE's archives, or the same rows as .parquet with the hub's columns; "
        "BoolQ CB COPA MultiRC ReCoRD RTE WiC WSC",
        source=Source(
            licence="each task's own; see the publisher",
            where="https://super.gluebenchmark.com/tasks",
            hub="aps/super_glue",
            patterns=tuple(
                f"{name}/validation*"
                for name in ("boolq", "cb", "copa", "multirc", "record", "rte", "wic", "wsc.fixed")
            ),
        ),
        parts=PARTS,
    ),
)
