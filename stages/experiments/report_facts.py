"""What the report says, section by section, read off the files of an experiment; a section may have to say why not."""

from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from stages.experiments.curves import curve_of, loss_svg
from stages.experiments.lineage_record import HASHED, Record
from stages.experiments.report_pictures import histogram_svg
from stages.experiments.summary import FEW_ROWS
from stages.instructions.deal import SPLITS
from stages.judging.responses import read_responses
from stages.pipeline.changes import flat
from stages.pipeline.errors import UserError
from stages.pipeline.files import read_json, read_parquet
from stages.tokens.arrays import NO_EXAMPLE, ROWS_AT_ONCE, TokenArrays, read_arrays
from stages.tokens.inspection import Piece, inspect_example
from stages.tokens.tokenizer import Tokenizer

Facts = dict[str, Any]

ANSWERS = 4
"""Answers that are shown of the best, and of the worst."""

SHOWN = 1200
"""Characters of a text that are shown."""

MISSING = "missing"
"""Key under which a section says why it cannot be shown."""


def gather(root: Path, record: Record) -> Facts:
    """Every section by name; one whose files are missing, damaged or of another version has `missing` alone."""
    metrics, data = root / "metrics", root / "data"
    sections: dict[str, Callable[[], Facts]] = {
        "rows": lambda: dict(read_json(metrics / "format.json")),
        "split": lambda: _split(metrics / "split.json"),
        "lengths": lambda: _lengths(data / "tokens"),
        "labels": lambda: dict(read_json(metrics / "tokens.json")),
        "example": lambda: _example(data),
        "training": lambda: _training(metrics),
        "scores": lambda: dict(read_json(metrics / "judge.json")),
        "answers": lambda: _answers(data),
        "reviews": lambda: dict(read_json(metrics / "reviews.json")),
        "benchmarks": lambda: {"figures": read_json(metrics / "benchmark.json")},
        "params": lambda: _params(root / "params.yaml"),
    }
    found: Facts = {}
    for name, read in sections.items():
        try:
            found[name] = read()
        except UserError as error:
            found[name] = {MISSING: str(error)}
        except (KeyError, TypeError) as error:
            found[name] = {MISSING: f"its files are of another version of this pipeline ({error}); run `dvc repro`"}
    found["hashes"] = {path: record.origin.files[path] for path in HASHED if path in record.origin.files}
    return found


# ---- data and labels


def _split(path: Path) -> Facts:
    """With a line for rows without a category, where others have one."""
    found = dict(read_json(path))
    categories = found.get("by_category") or {}
    rest = {name: found[name] - sum(own[name] for own in categories.values()) for name in SPLITS if categories}
    if any(rest.values()):
        found["by_category"] = categories | {"without a category": rest}
    return found


def _lengths(tokens: Path) -> Facts:
    """Tokens of all examples, of what is asked and of what is to be answered."""
    asked, answered = [], []
    for split in SPLITS:
        whole, responses = _tokens_of_examples(read_arrays(tokens / split))
        asked.append(whole - responses)
        answered.append(responses)
    return {"prompt": _distribution(np.concatenate(asked)), "response": _distribution(np.concatenate(answered))}


def _tokens_of_examples(arrays: TokenArrays) -> tuple[np.ndarray, np.ndarray]:
    """Tokens of each example, and those that belong to a response; int64 (examples,) both."""
    count = len(arrays.ids)
    whole, responses = np.ones(count, dtype=np.int64), np.zeros(count, dtype=np.int64)  # the first is no target
    for start in range(0, len(arrays.example), ROWS_AT_ONCE):
        example = np.asarray(arrays.example[start : start + ROWS_AT_ONCE])
        real = example != NO_EXAMPLE
        whole += np.bincount(example[real], minlength=count)
        answered = real & np.asarray(arrays.in_response[start : start + ROWS_AT_ONCE])
        responses += np.bincount(example[answered], minlength=count)
    return whole, responses


def _distribution(values: np.ndarray) -> Facts:
    median, high = (round(float(value)) for value in np.percentile(values, (50, 95)))
    return {"picture": histogram_svg(values), "median": median, "high": high, "longest": int(values.max())}


def _example(data: Path) -> Facts:
    """The train example of median length, token by token."""
    arrays = read_arrays(data / "tokens/train")
    lengths, _ = _tokens_of_examples(arrays)
    middle = int(np.argsort(lengths, kind="stable")[len(lengths) // 2])
    tokenizer = Tokenizer(data / "base_model")
    found = inspect_example(arrays.ids[middle], "train", data / "tokens", data / "split", tokenizer)
    return {"title": found.title, "place": found.place, "size": found.size, "pieces": [_piece(p) for p in found.pieces]}


def _piece(piece: Piece) -> Facts:
    return {"lines": piece.text.split("\n"), "has_loss": piece.has_loss, "ids": piece.ids}


# ---- training and answers


def _training(metrics: Path) -> Facts:
    finetuned = dict(read_json(metrics / "finetune.json"))
    speed = metrics / "speed.json"
    measured = dict(read_json(speed)) if speed.is_file() else {}
    curve = curve_of("this experiment", metrics / "losses.csv", finetuned)
    return finetuned | {"picture": loss_svg([curve]), "tokens_per_second": measured.get("tokens_per_second")}


def _answers(data: Path) -> Facts:
    """The answers that scored best and worst, and how many were cut."""
    responses = {row.id: row for row in read_responses(data / "responses.parquet")[0]}
    cut = sum(row.finish_reason == "length" for row in responses.values())
    scored = [row for row in read_parquet(data / "scores.parquet") if row["score"] is not None]
    scored.sort(key=lambda row: (row["score"], row["id"]))
    half = min(ANSWERS, len(scored) // 2)

    def shown(rows: Sequence[Facts]) -> list[Facts]:
        return [{**responses[row["id"]]._asdict(), **row} for row in rows]

    return {
        "worst": shown(scored[:half]),
        "best": shown(scored[len(scored) - half :][::-1]),
        "rows": len(responses),
        "cut": cut,
    }


def _params(path: Path) -> Facts:
    """Parameters by section, as text."""
    try:
        values = flat(yaml.safe_load(path.read_text(encoding="utf-8")) or {})
    except (OSError, yaml.YAMLError) as error:
        raise UserError(f"{path}: cannot be read ({str(error).splitlines()[0]})") from None
    named = [(name.partition("."), value) for name, value in values.items()]
    return {
        "sections": {
            section: {name: _yaml(value) for (_, _, name), value in group}
            for section, group in groupby(named, key=lambda one: one[0][0])
        }
    }


def _yaml(value: Any) -> str:
    text = value if isinstance(value, str) else yaml.safe_dump(value, default_flow_style=True, width=10**6)
    return text.strip().removesuffix("...").strip()


# ---- what to beware of


def cautions(facts: Facts, record: Record) -> list[str]:
    """What a reader must know before relying on the figures, the worst first."""
    stale = ", ".join(f"{path} ({how})" for path, how in record.stale.items())
    found = [f"Changed since the last dvc repro: {stale}. Run it before you rely on the figures."] if stale else []
    return [
        *found,
        *_of_judge(facts["scores"]),
        *_of_data(facts["split"], facts["labels"]),
        *_of_training(facts["training"]),
        *_of_answers(facts["scores"], facts["answers"]),
    ]


def _of_judge(scores: Facts) -> list[str]:
    found = []
    if scores.get("judge_reliable") == 0:
        found.append("The judge cannot be relied on: it does not tell good answers from bad. Read the answers.")
    if scores.get("invalid_fraction", 0) > 0:
        found.append(f"{scores['invalid_fraction']:.1%} of the judge's verdicts could not be read.")
    if scores.get("judge_injection_gain", 0) > 5:
        gain = scores["judge_injection_gain"]
        found.append(f"An answer that demands full marks gains {gain:.1f} points from the judge.")
    return found


def _of_data(split: Facts, labels: Facts) -> list[str]:
    found = []
    if split.get("leaked_rows"):
        found.append(f"{split['leaked_rows']} rows have a near-duplicate in another split: the scores are too high.")
    if split.get("pairs_not_compared"):
        found.append(f"{split['pairs_not_compared']} pairs of rows were too alike to be compared all.")
    for name in SPLITS:
        own = labels.get(name, {})
        if own.get("dropped") or own.get("truncated"):
            found.append(
                f"{name}: {own['truncated']} of {own['examples']} examples were truncated, {own['dropped']} dropped."
            )
    if labels.get("train", {}).get("eos_trained_fraction", 1) < 1:
        share = labels["train"]["eos_trained_fraction"]
        found.append(f"Only {share:.1%} of the train examples teach the model to stop.")
    return found


def _of_training(training: Facts) -> list[str]:
    if training.get("overfit_epoch", 0) < 0:
        return ["No overfitting was seen: more epochs may lower the validation loss further."]
    if training.get("overfit_confirmed") == 0:
        return ["The onset of overfitting is not confirmed: more epochs or more validation rows would tell."]
    return []


def _of_answers(scores: Facts, answers: Facts) -> list[str]:
    found = []
    if scores.get("rows", FEW_ROWS) < FEW_ROWS:
        found.append(f"Only {scores['rows']} test rows: too few to tell, and the intervals are too narrow.")
    if scores.get("win_rate_low", 1) <= 0.5 <= scores.get("win_rate_high", 0):
        found.append("The interval of the win rate holds one half: the base model may be as good.")
    if answers.get("cut"):
        found.append(f"{answers['cut']} of {answers['rows']} answers were cut at generate.max_new_tokens.")
    return found
