"""What a sweep came to, best score first."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from stages.experiments.sweep_points import Point, short_name
from stages.experiments.sweep_queue import Experiment
from stages.pipeline.tables import drawn, one_line

Metrics = Mapping[str, Any]


def plan_text(points: Sequence[Point]) -> str:
    """The experiments that would run, and what each sets."""
    table = Table("Experiment", "Sets", box=None, pad_edge=False)
    for point in points:
        table.add_row(Text(point.name), Text(" ".join("=".join(own) for own in point.values.items())))
    return drawn(table)


def results_text(experiments: Sequence[Experiment], names: Sequence[str], workspace: Experiment) -> str:
    """A table of finished experiments, the workspace last where it has been judged, and what to make of it.

    `names`: parameters that the sweep sets; those with one value everywhere are left out.
    """
    ranked = sorted(experiments, key=lambda one: (-_judged(one).get("score", -1.0), one.name))
    shown = [*ranked, workspace] if _judged(workspace) else ranked
    varying = [name for name in names if len({str(one.params.get(name)) for one in shown}) > 1]
    table = Table(box=None, pad_edge=False)
    table.add_column("")
    table.add_column("Experiment", overflow="fold")
    for title in (
        *(short_name(name, set(varying)) for name in varying),
        "Validation loss",
        "Onset",
        "Trained",
        "Score",
    ):
        table.add_column(title, justify="right")
    for place, one in enumerate(shown, start=1):
        values = (Text(one_line(str(one.params.get(name)), 20)) for name in varying)
        table.add_row("" if one is workspace else str(place), Text(one.name), *values, *_figures(one))
    return drawn(table, *map(Text, _notes(ranked)))


def _judged(one: Experiment) -> Metrics:
    return one.metrics.get("metrics/judge.json", {})


def _figures(one: Experiment) -> list[str]:
    tuned, judged = one.metrics.get("metrics/finetune.json", {}), _judged(one)
    onset, score = "-", "-"
    if tuned:
        sure = "" if tuned["overfit_confirmed"] else "?"
        onset = "not seen" if tuned["overfit_epoch"] < 0 else f"{tuned['overfit_epoch']:.2f}{sure}"
    if "score" in judged:
        score = f"{judged['score']:.1f}"
    if "score_low" in judged:
        score += f" [{judged['score_low']:.1f}, {judged['score_high']:.1f}]"
    numbers = (("best_validation_loss", 3), ("epochs_trained", 2))
    loss, trained = (f"{tuned[name]:.{digits}f}" if name in tuned else "-" for name, digits in numbers)
    return [loss, onset, trained, score]


def _notes(ranked: Sequence[Experiment]) -> list[str]:
    lines = ["", "Onset and Trained in epochs; ?: not confirmed. [ ]: interval of one score by itself."]
    judges = sorted({_trust(_judged(one)) for one in ranked if _judged(one)})
    lines += [f"Judge: {one_line(judge, 100)}" for judge in judges]
    if len(ranked) > 1:
        first, second = ranked[0].name, ranked[1].name
        lines.append("The best of many owes part of its lead to luck. Whether two differ, on the same rows:")
        lines.append(f"  python -m stages.experiment compare {first} {second}")
    if ranked:
        lines += ["Take one into the workspace:", f"  dvc exp apply {ranked[0].name}"]
    return lines


def _trust(judged: Metrics) -> str:
    auc = f", AUC {judged['judge_auc']:.2f}" if "judge_auc" in judged else ""
    relied = "" if judged.get("judge_reliable", 1) else "; IT CANNOT BE RELIED ON: read the answers"
    return f"{judged.get('judge', 'not known')}{auc}{relied}"
