"""Responses -> scores, with the judge's own trustworthiness.

Every answer of both models is held against its reference: exact match, token F1, ROUGE-L, and a judge's score from 0 to
100. The same judge, in the same run, also scores answers known to be good and known to be bad: its card.
data/review.html shows every row, worst first.
"""

from pathlib import Path
from typing import Annotated, ClassVar, Literal

import typer
from pydantic import Field

from stages.pipeline.errors import one_line_errors
from stages.pipeline.params import Number, Params, Whole

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    invoke_without_command=True,
    help=__doc__,
)


class JudgeParams(Params):
    """Section `judge` of params.yaml."""

    section: ClassVar[str] = "judge"
    judge: Literal["embedded"]
    """Who judges."""
    card_rows: Whole = Field(ge=1)
    """Test rows from which the card's good and corrupted answers are made."""
    confidence: Number = Field(gt=0, lt=1)
    """Of every interval."""
    resamples: Whole = Field(ge=100)
    """Bootstrap samples behind every interval."""
    seed: Whole = Field(ge=0)
    """Of bootstrap and corruption."""


@app.callback()
@one_line_errors()
def main(
    context: typer.Context,
    responses: Annotated[Path, typer.Option(help="Both models' answers.")] = Path("data/responses.parquet"),
    base_model: Annotated[Path, typer.Option(help="Model for the judge's likelihoods.")] = Path("data/base_model"),
    finetune_metrics: Annotated[Path, typer.Option(help="For the row in MLflow.")] = Path("metrics/finetune.json"),
    scores: Annotated[Path, typer.Option(help="Written: scores of each row.")] = Path("data/scores.parquet"),
    review: Annotated[Path, typer.Option(help="Written: the page to read.")] = Path("data/review.html"),
    metrics: Annotated[Path, typer.Option(help="Written: all figures.")] = Path("metrics/judge.json"),
    params: Annotated[Path, typer.Option(help="Parameters.")] = Path("params.yaml"),
) -> None:
    if context.invoked_subcommand:
        return
    settings = JudgeParams.load(params)

    from stages.judging.embedded import EmbeddedJudge
    from stages.judging.responses import read_responses
    from stages.judging.review import write_review
    from stages.judging.scoring import judge_responses, score_table, write_scores
    from stages.model.allocator import keep_freed_memory
    from stages.model.checkpoint import make_deterministic
    from stages.pipeline.files import read_json, write_json
    from stages.pipeline.progress import say
    from stages.pipeline.tracking import JudgeRun

    keep_freed_memory()
    make_deterministic(settings.seed)
    rows, _ = read_responses(responses)
    finetuned = read_json(finetune_metrics)
    scored, summary = judge_responses(EmbeddedJudge(base_model), rows, **settings.model_dump(exclude={"judge"}))
    write_scores(scores, scored)
    write_review(review, rows, scored, summary)
    write_json(metrics, summary)
    JudgeRun().log(
        params=params,
        data={"responses": responses},
        finetune_metrics=finetune_metrics,
        summary=finetuned | summary,
        table=score_table(rows, scored),
        files=[review],
    )
    say(
        f"judge: score {summary['score']:.1f} against {summary['base_score']:.1f} for the base model, "
        f"win rate {summary['win_rate']:.2f}; judge AUC {summary['judge_auc']:.2f}; read {review}"
    )


@app.command()
@one_line_errors()
def calibrate(
    responses: Annotated[Path, typer.Option(help="Rows to make known answers from.")] = Path("data/responses.parquet"),
    base_model: Annotated[Path, typer.Option(help="Model for the judge's likelihoods.")] = Path("data/base_model"),
    rows: Annotated[int, typer.Option(help="At most so many rows.")] = 100,
    seed: Annotated[int, typer.Option(help="Of corruption; not the one the card uses.")] = 20,
) -> None:
    """Fit the embedded judge's weights anew on known good and corrupted answers, and write them beside its code."""
    from stages.judging.calibration import fit
    from stages.judging.embedded import WEIGHTS
    from stages.judging.responses import read_responses
    from stages.pipeline.files import write_json
    from stages.pipeline.progress import say

    weights = fit(read_responses(responses)[0], base_model, rows, seed)
    write_json(WEIGHTS, weights)
    say(f"judge: {weights} written to {WEIGHTS}; commit them")


if __name__ == "__main__":
    app()
