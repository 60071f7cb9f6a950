"""A comparison in words and tables, which the terminal, Markdown and the page then draw each in its way."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from stages.experiments.comparison_texts import TEXT, around_changes, changed_words
from stages.pipeline.tables import one_line

Figures = Mapping[str, Any]


class Section(NamedTuple):
    """A table under a title, with lines below it."""

    title: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    lines: list[str]
    is_cause: bool = True


def named(side: Figures) -> str:
    """An experiment's name, and its commit where it has one."""
    commit = (side["commit"] or "")[:7]
    return f"{side['name']} ({commit})" if commit and not side["name"].startswith(commit) else side["name"]


# ---- the verdict


def verdict(figures: Figures) -> list[str]:
    """What changed, what it did to the score, and where overfitting began: a line each."""
    return [f"What changed: {_causes_in_words(figures)}.", _score_in_words(figures), _onset_in_words(figures)]


def _causes_in_words(figures: Figures) -> str:
    causes = figures["causes"]
    data = causes["data"] or {}
    parts = []
    params = causes["params"]
    if len(params) == 1:
        parts += [f"{name} from {shown(one)} to {shown(other)}" for name, (one, other) in params.items()]
    elif params:
        parts.append(_count(len(params), "parameter"))
    parts += [
        f"{_count(data[kind]['count'], 'row')} of data {kind}"
        for kind in ("added", "removed", "edited")
        if data and data[kind]["count"]
    ]
    if data and data["moved"]["count"]:
        parts.append(f"{_count(data['moved']['count'], 'row')} in another split")
    if data and data["recategorized"]["count"]:
        parts.append(f"{_count(data['recategorized']['count'], 'row')} in another category")
    for kind, name in (("code", "file"), ("inputs", "input")):
        if causes[kind]:
            parts.append(_count(len(causes[kind]), name) + (" of code" if kind == "code" else ""))
    parts += [words for kind, words in _WHOLES.items() if causes[kind]]
    if parts:
        return ", ".join(parts)
    if figures["not_reproduced"]:
        return "nothing, and yet the results differ"
    return "nothing, as far as can be told" if causes["unknown"] else "nothing"


_WHOLES = {"base_model": "the base model", "environment": "the environment"}


def _count(number: int, name: str) -> str:
    return f"{number} {name}" + ("" if number == 1 else "s")


def _score_in_words(figures: Figures) -> str:
    if figures["scores_missing"]:
        return f"Scores are not compared: {figures['scores_missing']}."
    rows = _count(figures["rows"]["compared"], "row")
    if not _same_judge(figures):
        return f"Scores cannot be compared: the judge is not the same ({rows})."
    if figures["identical"]:
        return f"The answers and their scores are the same ({rows})."
    change, low, high = (figures[name] for name in ("difference", "difference_low", "difference_high"))
    told = f"B - A: {with_interval(figures)} points"
    if low is None:
        return f"{told}: {rows} is too few to tell."
    p_value = f", p = {figures['p_value']:.2g}, {rows}"
    about = f"{told} ({figures['confidence']:.0%} interval{p_value})"
    if low <= 0 <= high:
        return f"No difference in score can be told: {about}."
    return f"B scores {'higher' if change > 0 else 'lower'}: {about}."


def _same_judge(figures: Figures) -> bool:
    return figures["a"]["judge"] == figures["b"]["judge"] and not figures["judge_changed"]


def _onset_in_words(figures: Figures) -> str:
    one, other = (onset(figures[side]["results"]) for side in ("a", "b"))
    return f"Overfitting began: A {one}; B {other}."


def onset(results: Figures) -> str:
    """Where overfitting began."""
    epoch = results.get("overfit_epoch")
    if epoch is None:
        return "not known"
    if epoch < 0:
        return "not seen"
    return f"epoch {epoch:.2f}, {'' if results.get('overfit_confirmed') else 'not '}confirmed"


def with_interval(figures: Figures) -> str:
    """The second's less the first's."""
    text = f"{figures['difference']:+.1f}"
    if figures["difference_low"] is not None:
        text += f" [{figures['difference_low']:+.1f}, {figures['difference_high']:+.1f}]"
    return text


def shown(value: Any) -> str:
    """A parameter as params.yaml has it; a dash for none."""
    if value is None:
        return "-"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


# ---- causes


def sections(figures: Figures) -> list[Section]:
    """Causes, in the order in which they act, then results; those that have something to tell."""
    causes = figures["causes"]
    found = [
        Section("Parameters", ("Parameter", "A", "B"), _pairs(causes["params"], shown), []),
        *_data(causes["data"]),
        Section("Code", ("File", "Change", "Stages"), _code(causes["code"]), []),
        Section("Other inputs", ("Path", "A", "B"), _pairs(causes["inputs"], _digest), []),
        Section("Base model", ("", "A", "B"), _pairs(causes["base_model"], shown), []),
        Section("Environment", ("", "A", "B"), _pairs(causes["environment"], _listed), []),
        Section("Results", ("", "A", "B", "B - A"), list(_results(figures)), _about_rows(figures), is_cause=False),
        Section("Benchmarks", ("", "A", "B", "B - A"), *_benchmarks(figures), is_cause=False),
        Section("Scores by category", _CATEGORY, list(_categories(figures)), [], is_cause=False),
    ]
    return [section for section in found if section.rows or section.lines]


def _pairs(pairs: Mapping[str, Sequence[Any]], show: Callable[[Any], str]) -> list[tuple[str, ...]]:
    return [(name, *map(show, pair)) for name, pair in pairs.items()]


def _digest(md5: str | None) -> str:
    return "-" if md5 is None else f"md5 {md5[:8]}"


def _listed(value: Any) -> str:
    return (", ".join(map(str, value)) or "none") if isinstance(value, list) else shown(value)


def _code(code: Mapping[str, Figures]) -> list[tuple[str, ...]]:
    return [(path, own["change"], ", ".join(own["stages"])) for path, own in code.items()]


def _data(data: Figures | None) -> list[Section]:
    if not data:
        return []
    kinds = ("added", "removed", "edited", "moved")
    rows = [(kind, *told) for kind in kinds for row in data[kind]["rows"] for told in _row(kind, row)]
    lines = [_counted(kind, data[kind]) for kind in kinds if data[kind]["count"]]
    if data["recategorized"]["count"]:
        lines.append(f"{_count(data['recategorized']['count'], 'row')} put into another category")
    return [Section("Data", ("Change", "Split", "Where", "Text"), rows, lines)]


def _counted(kind: str, own: Figures) -> str:
    where = ", ".join(f"{split} {count}" for split, count in own["by_split"].items())
    more = "; the first are shown" if own["count"] > len(own["rows"]) else ""
    words = "moved to another split" if kind == "moved" else kind
    return f"{_count(own['count'], 'row')} {words}" + (f" ({where})" if where else "") + more


def _row(kind: str, row: Figures) -> Iterator[tuple[str, str, str]]:
    """An edited row takes a line for each of its texts that changed, before and after."""
    where = f"{row['file']}:{row['line']}"
    if kind == "moved":
        yield f"{row['from']} to {row['to']}", where, _asked(row)
    elif kind == "edited":
        moved = row["split"] and row["from"] and row["split"] != row["from"]
        yield f"{row['from']} to {row['split']}" if moved else row["split"] or "-", where, _asked(row)
        for name, old in row["was"].items():
            if name in row and name != "id":
                before, after = changed_words(old, row[name])
                yield "", f"{name} was", around_changes(before)
                yield "", f"{name} is", around_changes(after)
    else:
        yield row["split"] or "-", where, _asked(row)


def _asked(row: Figures) -> str:
    return one_line(f"{row['instruction']} {row['input']}", TEXT)


# ---- results

_CATEGORY = ("Category", "Rows", "A", "B", "B - A", "B wins", "A wins", "Ties")


def _results(figures: Figures) -> Iterator[tuple[str, ...]]:
    one, other = (figures[side]["results"] for side in ("a", "b"))
    compared = not figures["scores_missing"]

    def line(title: str, name: str, digits: int, *, signed: bool = True) -> Iterator[tuple[str, ...]]:
        pair = one.get(name), other.get(name)
        if pair != (None, None):
            change = f"{pair[1] - pair[0]:+,.{digits}f}" if signed and None not in pair else ""
            yield title, *(_number(side, name, digits) for side in (one, other)), change

    yield from line("best validation loss", "best_validation_loss", 3)
    yield from line("at epoch", "best_epoch", 2)
    if "overfit_epoch" in {**one, **other}:
        yield "overfitting began", onset(one), onset(other), ""
        yield from line("its p value", "overfit_p_value", 4, signed=False)
    yield from line("epochs trained", "epochs_trained", 2)
    yield from line("tokens trained on", "tokens_seen", 0)
    yield from line("tokens with a loss", "supervised_tokens", 0)
    if compared:
        scores = (f"{figures[name]:.1f}" for name in ("score_a", "score_b"))
        yield "score, same rows", *scores, with_interval(figures) if _same_judge(figures) else ""
    yield from line("score", "score", 1, signed=not compared)
    yield from line("base model's score", "base_score", 1)
    yield from line("win rate against it", "win_rate", 2)
    yield from line("ROUGE-L", "rouge_l", 3)
    yield from line("token F1", "token_f1", 3)
    yield from line("exact match", "exact_match", 3)
    yield from line("judge AUC", "judge_auc", 2)
    yield "judge", *(one_line(figures[side]["judge"] or "not known", 40) for side in ("a", "b")), ""


def _number(results: Figures, name: str, digits: int) -> str:
    value = results.get(name)
    if value is None:
        return "-"
    low, high = results.get(f"{name}_low"), results.get(f"{name}_high")
    limits = f" [{low:.{digits}f}, {high:.{digits}f}]" if low is not None and high is not None else ""
    return f"{value:,.{digits}f}{limits}"


def _about_rows(figures: Figures) -> list[str]:
    if figures["scores_missing"]:
        return []
    rows = figures["rows"]
    left = {
        "only in A": rows["only_a"],
        "only in B": rows["only_b"],
        "with another instruction or reference": rows["other_reference"],
        "without a score": rows["unscored"],
    }
    not_compared = ", ".join(f"{count} {name}" for name, count in left.items() if count)
    compared = f"{rows['compared']} rows compared" + (f"; not compared: {not_compared}" if not_compared else "")
    if not _same_judge(figures):
        return [compared]
    p_value = figures["p_value"]
    return [
        compared,
        f"B wins {figures['wins_b']}, A wins {figures['wins_a']}, {_count(figures['ties'], 'tie')}"
        + ("" if p_value is None else f"; p = {p_value:.2g} (paired randomization test)"),
    ]


def _benchmarks(figures: Figures) -> tuple[list[tuple[str, ...]], list[str]]:
    """Benchmarks as such, not their parts, that both measured; and which of them not in the same way."""
    one, other = (figures[side]["benchmarks"] for side in ("a", "b"))
    rows, otherwise = [], []
    for name in one:
        if name not in other or "/" in name:
            continue
        ways = [{key: value for key, value in side[name].items() if key != "metrics"} for side in (one, other)]
        otherwise += [name] if ways[0] != ways[1] else []
        for metric, values in one[name]["metrics"].items():
            pair = [side.get("fine-tuned") for side in (values, other[name]["metrics"].get(metric, {}))]
            if None not in pair:
                change = f"{pair[1]['value'] - pair[0]['value']:+.3f}"
                rows.append((f"{name} {metric}", *(_number(_named(own), "value", 3) for own in pair), change))
    lines = [f"measured in another way (shots, data or library): {', '.join(otherwise)}"] if otherwise else []
    return rows, lines


def _named(own: Figures) -> Figures:
    return {"value": own["value"], "value_low": own.get("low"), "value_high": own.get("high")}


def _categories(figures: Figures) -> Iterator[tuple[str, ...]]:
    if figures["scores_missing"] or not _same_judge(figures):
        return
    for name, own in figures["by_category"].items():
        scores = (f"{own[key]:.1f}" for key in ("score_a", "score_b"))
        results = (str(own[key]) for key in ("wins_b", "wins_a", "ties"))
        yield one_line(name, 30), str(own["num_rows"]), *scores, with_interval(own), *results
