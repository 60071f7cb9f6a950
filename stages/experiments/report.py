"""The report: an experiment on one self-contained page, written without a script so that no text can run as one."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import ChainableUndefined, Environment
from markupsafe import Markup

from stages.experiments.lineage_record import Record
from stages.experiments.pages import content_policy
from stages.experiments.report_facts import SHOWN, cautions, gather
from stages.experiments.report_pictures import score_svg
from stages.pipeline.environment import in_words
from stages.pipeline.errors import UserError
from stages.pipeline.files import write_text

PAGE = Path(__file__).with_name("report.html")
NONE = "\u2013"


def write_report(path: Path, root: Path, record: Record, runs: Sequence[Mapping[str, str]]) -> None:
    """Write the report of the experiment whose data/ and metrics/ are in `root`; a section without files says so.

    `runs` are those in MLflow: `name`, `kind` and `id`.

    Raises:
        UserError: there is no experiment.
    """
    if not (root / "params.yaml").is_file():
        raise UserError(f"{root / 'params.yaml'}: not found; run from the folder that holds dvc.yaml")
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=ChainableUndefined)
    environment.filters |= {"number": _number, "share": _share, "short": _short, "named": _named}
    environment.globals |= {"score_picture": _score_picture, "svg": Markup}
    source = PAGE.read_text(encoding="utf-8")
    facts = gather(root, record)
    page = environment.from_string(source).render(
        **facts,
        record=record,
        runs=runs,
        elsewhere=in_words(record.elsewhere),
        cautions=cautions(facts, record),
        policy=content_policy(source),
    )
    write_text(path, page)


def _number(value: Any, digits: int = 2) -> str:
    """With a true minus sign and thousands apart; a dash where there is none."""
    if not isinstance(value, int | float):
        return NONE
    text = f"{value:,}" if isinstance(value, int) else f"{value:,.{digits}f}"
    return text.replace("-", "\u2212").replace(",", "\u202f")


def _share(value: Any, digits: int = 0) -> str:
    return f"{_number(float(value) * 100, digits)}\u202f%" if isinstance(value, int | float) else NONE


def _short(text: str) -> str:
    return text if len(text) <= SHOWN else f"{text[:SHOWN]} … ({len(text) - SHOWN:,} characters more)"


def _named(name: str) -> str:
    return name.replace("_", " ")


def _score_picture(figures: dict[str, Any]) -> Markup:
    if "score" not in figures:
        return Markup("")
    ends = (figures.get(name) for name in ("score_low", "score_high", "base_score"))
    return Markup(score_svg(figures["score"], *ends))
