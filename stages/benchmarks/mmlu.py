"""MMLU (Hendrycks et al. 2021, arXiv 2009.03300): 57 subjects of four-choice questions, five shots from dev.

lm-eval asks and scores; rows come from the publisher's CSV files or the hub's Parquet.
"""

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from stages.benchmarks.benchmark import Benchmark, Figure, Found, Measurement, Need, Row, Settings, Source, Subject
from stages.benchmarks.estimates import Estimate, weighted
from stages.benchmarks.figures import About, figures
from stages.benchmarks.tables import Line, number_of, read_lines, text_of, value_of
from stages.instructions.raw_files import read_text
from stages.pipeline.errors import UserError

SHOTS = 5
LETTERS = "ABCD"
SPLITS = {"dev": "dev", "val": "validation", "test": "test"}
"""The publisher's name of each split, and the hub's."""

STEM = {
    "abstract_algebra": 100, "anatomy": 135, "astronomy": 152, "college_biology": 144, "college_chemistry": 100,
    "college_computer_science": 100, "college_mathematics": 100, "college_physics": 102, "computer_security": 100,
    "conceptual_physics": 235, "electrical_engineering": 145, "elementary_mathematics": 378,
    "high_school_biology": 310, "high_school_chemistry": 203, "high_school_computer_science": 100,
    "high_school_mathematics": 270, "high_school_physics": 151, "high_school_statistics": 216, "machine_learning": 112,
}  # fmt: skip
HUMANITIES = {
    "formal_logic": 126, "high_school_european_history": 165, "high_school_us_history": 204,
    "high_school_world_history": 237, "international_law": 121, "jurisprudence": 108, "logical_fallacies": 163,
    "moral_disputes": 346, "moral_scenarios": 895, "philosophy": 311, "prehistory": 324, "professional_law": 1534,
    "world_religions": 171,
}  # fmt: skip
SOCIAL_SCIENCES = {
    "econometrics": 114, "high_school_geography": 198, "high_school_government_and_politics": 193,
    "high_school_macroeconomics": 390, "high_school_microeconomics": 238, "high_school_psychology": 545,
    "human_sexuality": 131, "professional_psychology": 612, "public_relations": 110, "security_studies": 245,
    "sociology": 201, "us_foreign_policy": 100,
}  # fmt: skip
OTHER = {
    "business_ethics": 100, "clinical_knowledge": 265, "college_medicine": 173, "global_facts": 100,
    "human_aging": 223, "management": 103, "marketing": 234, "medical_genetics": 100, "miscellaneous": 783,
    "nutrition": 306, "professional_accounting": 282, "professional_medicine": 272, "virology": 166,
}  # fmt: skip
GROUPS = {"stem": STEM, "humanities": HUMANITIES, "social_sciences": SOCIAL_SCIENCES, "other": OTHER}
"""Groups as lm-eval has them (tags of lm_eval/tasks/mmlu/default), with each subject's rows in test."""
PUBLISHED = {subject: GROUPS[group][subject] for group in GROUPS for subject in GROUPS[group]}

Doc = dict[str, Any]
Splits = dict[str, dict[str, list[Doc]]]
"""Rows by split, dev, val and test, and by subject."""


class Chosen(NamedTuple):
    """What is measured of one subject."""

    split: Literal["test", "val"]
    docs: list[Doc]


def read(folder: Path) -> Splits:
    """All rows that are there.

    Raises:
        UserError: a file is not in the publisher's format, or of no subject of MMLU.
    """
    root = folder / "data" if (folder / "data").is_dir() else folder
    splits: Splits = {}
    for split, hub in SPLITS.items():
        own = splits.setdefault(split, {})
        for path in sorted((root / split).glob("*.csv")):
            subject = path.name.removesuffix(f"_{split}.csv")
            if subject not in PUBLISHED:
                raise UserError(f"{path}: '{subject}' is no subject of MMLU; name it <subject>_{split}.csv")
            own[subject] = _read_csv(path)
        if not own:
            for path in sorted((root / "all" if (root / "all").is_dir() else root).glob(f"{hub}*.parquet")):
                for line in read_lines(path):
                    own.setdefault(_subject(line), []).append(_of_hub(line))
    return splits


def _read_csv(path: Path) -> list[Doc]:
    rows = csv.reader(io.StringIO(read_text(path), newline=""), strict=True)
    docs: list[Doc] = []
    try:
        for row in rows:
            if not row:
                continue
            if len(row) != 6 or row[5].strip() not in LETTERS or not row[5].strip():
                raise UserError(
                    f"{path}:{rows.line_num}: wanted six fields, question, A, B, C, D and the right letter, without a "
                    "header; fetch the file again"
                )
            docs.append({"question": row[0], "choices": row[1:5], "answer": LETTERS.index(row[5].strip())})
    except csv.Error as error:
        raise UserError(f"{path}:{rows.line_num}: broken CSV: {error}; fetch the file again") from None
    if not docs:
        raise UserError(f"{path}: holds no row; fetch the file again")
    return docs


def _of_hub(line: Line) -> Doc:
    choices, answer = value_of(line, "choices"), number_of(line, "answer")
    if not isinstance(choices, Sequence) or len(choices) != 4 or answer not in range(4):
        raise UserError(f"{line.where}: wanted four 'choices' and an 'answer' from 0 to 3; fetch the file again")
    return {"question": text_of(line, "question"), "choices": [str(one) for one in choices], "answer": int(answer)}


def _subject(line: Line) -> str:
    subject = text_of(line, "subject")
    if subject not in PUBLISHED:
        raise UserError(f"{line.where}: '{subject}' is no subject of MMLU; fetch the file again")
    return subject


def choose(splits: Splits) -> dict[str, Chosen]:
    """Rows to measure by subject: those of test, or of val where test is not there."""
    found = {}
    for subject in sorted(PUBLISHED):
        if subject in splits["test"]:
            found[subject] = Chosen("test", splits["test"][subject])
        elif subject in splits["val"]:
            found[subject] = Chosen("val", splits["val"][subject])
    return found


class Mmlu(Benchmark):
    """The benchmark."""

    name = "mmlu"
    title = "MMLU"
    about = "questions with four choices in 57 subjects, 5 shots from dev, by likelihood of the letter; accuracy"
    layout = "test/<subject>_test.csv and dev/<subject>_dev.csv as published (val/ where test is missing), or the "
    layout += "hub's all/test*.parquet and all/dev*.parquet"
    source = Source(
        licence="MIT",
        where="https://github.com/hendrycks/test",
        hub="cais/mmlu",
        patterns=("all/test*.parquet", "all/dev*.parquet"),
    )
    needs: frozenset[Need] = frozenset()
    together = False

    def find(self, folder: Path) -> Found:
        """Rows by subject."""
        return Found({subject: len(chosen.docs) for subject, chosen in choose(read(folder)).items()}, PUBLISHED)

    def measure(
        self, subjects: Sequence[Subject], folder: Path, wanted: Sequence[str], settings: Settings, into: Path
    ) -> Measurement:
        """Every subject that is there or wanted, the groups, and the whole."""
        from stages.benchmarks import harness

        splits = read(folder)
        chosen = {name: one for name, one in choose(splits).items() if not wanted or name in wanted}
        if not chosen:
            raise UserError(f"{folder}: holds no rows of {', '.join(wanted) or 'test or val'}; wanted: {self.layout}")
        shots = settings.shots.get(self.name, SHOTS)
        tasks = [_task(subject, one, splits["dev"].get(subject, []), shots, folder) for subject, one in chosen.items()]
        made: list[Figure] = []
        rows: list[Row] = []
        for subject in subjects:
            measured = harness.run(tasks, subject, settings)
            estimates = {name.removeprefix("mmlu/"): one.estimates["acc"] for name, one in measured.items()}
            for about, one in _wholes(estimates, chosen, shots, settings.limit, harness.LIBRARY):
                made += figures(about, {"acc": one}, subject, settings)
            rows += [row for one in measured.values() for row in one.rows]
        return Measurement(made, rows)


def _task(subject: str, chosen: Chosen, dev: Sequence[Doc], shots: int, folder: Path) -> Any:
    from stages.benchmarks.harness import Task, stock

    if len(dev) < shots:
        raise UserError(
            f"{folder}: {shots} shots of {subject} are wanted from dev, there are {len(dev)}; bring "
            f"dev/{subject}_dev.csv or set benchmark.shots: {{mmlu: {len(dev)}}}"
        )
    config = stock(f"mmlu/default/mmlu_{subject}.yaml")
    if shots == 0:
        config = {key: value for key, value in config.items() if not key.startswith("fewshot")}
    docs = {"test": chosen.docs} | ({"dev": dev} if shots else {})
    return Task(f"mmlu/{subject}", config, docs, shots)


def _wholes(
    estimates: Mapping[str, Estimate], chosen: Mapping[str, Chosen], shots: int, limit: int | None, library: str
) -> Iterator[tuple[About, Estimate]]:
    """The whole, groups and subjects; of a group with one subject run, that subject alone is told."""
    found = Found({name: len(one.docs) for name, one in chosen.items()}, PUBLISHED)
    names = {"mmlu": list(PUBLISHED)} | {f"mmlu/{group}": list(GROUPS[group]) for group in GROUPS}
    names |= {f"mmlu/{name}": [name] for name in chosen}
    for task, wanted in names.items():
        run = [name for name in wanted if name in chosen]
        if len(run) < min(2, len(wanted)):
            continue
        protocol = "lm-eval's prompt, shots from dev; the likeliest of the letters A to D"
        if on_val := sum(chosen[name].split == "val" for name in run):
            protocol += "; on val" + (f" in {on_val} of {len(run)} subjects" if len(run) > 1 else "")
        scope = found.scope(wanted, limit)
        own = [estimates[name] for name in run]
        about = About(task, shots, protocol, library, scope, run=len(run), out_of=len(wanted))
        yield about, weighted(own, [one.n for one in own])


BENCHMARKS = (Mmlu(),)
