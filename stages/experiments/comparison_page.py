"""A comparison as one self-contained page: causes, loss curves of both, results, answers side by side."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from stages.experiments.comparison import Experiment
from stages.experiments.comparison_scores import Difference
from stages.experiments.comparison_texts import changed_words
from stages.experiments.comparison_words import named, sections, verdict
from stages.experiments.curves import curve_of, loss_svg
from stages.experiments.pages import fill_page
from stages.pipeline.files import write_text

PAGE = Path(__file__).with_name("comparison.html")


def write_page(
    path: Path, first: Experiment, second: Experiment, figures: Mapping[str, Any], rows: Sequence[Difference]
) -> None:
    """Write the page; `rows` are the answers that are shown.

    Raises:
        UserError: a table of losses is damaged.
    """
    curves = [
        curve_of(f"{letter}: {named(figures[side])}", losses, experiment.metrics.get("finetune", {}))
        for letter, side, experiment in (("A", "a", first), ("B", "b", second))
        if (losses := experiment.find("metrics/losses.csv"))
    ]
    found = sections(figures)
    page = fill_page(
        PAGE,
        names=[named(figures[side]) for side in ("a", "b")],
        verdict=verdict(figures),
        warnings=figures["warnings"],
        causes=[section for section in found if section.is_cause],
        curves=Markup(loss_svg(curves)) if len(curves) == 2 else None,
        results=[section for section in found if not section.is_cause],
        answers=[_side_by_side(row) for row in rows],
    )
    write_text(path, page)


def _side_by_side(row: Difference) -> dict[str, Any]:
    texts = changed_words(row.first.response, row.second.response)
    sides = zip("AB", (row.first.score, row.second.score), texts, strict=True)
    return {
        "id": row.id,
        "change": row.change,
        "category": row.first.category,
        "asked": row.first.asked,
        "sides": [{"name": name, "score": score, "pieces": pieces} for name, score, pieces in sides],
    }
