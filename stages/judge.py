"""Responses -> scores, with the judge's own trustworthiness.

Every answer of both models is held against its reference: exact match, token F1, ROUGE-L, and a score from 0 to 100 by
each judge, which also compares them in pairs. The same judge, in the same run, grades answers known to be good and
known to be bad: its card. What an endpoint was asked once is kept in .calls.db and never asked again. data/review.html
shows every row, worst first, to be read and scored.
"""

import re
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import typer
from pydantic import Field, model_validator

from stages.model.endpoint import EndpointParams
from stages.pipeline.errors import one_line_errors
from stages.pipeline.params import Number, Params, Whole

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    invoke_without_command=True,
    help=__doc__,
)

EMBEDDED = "embedded"


class JudgeParams(Params):
    """Section `judge` of params.yaml."""

    section: ClassVar[str] = "judge"
    judges: list[str] = Field(min_length=1)
    """Who judges: `embedded`, or names of endpoints; the first one's score is the experiment's."""
    endpoints: dict[str, EndpointParams]
    """Models behind OpenAI-compatible endpoints, by name."""
    scale: Literal["rubric", "percent"]
    """What an endpoint is asked for: 1 to 5 by the rubric, or 0 to 100."""
    rubric: str = Field(min_length=1)
    """What each score from 1 to 5 means."""
    pairwise: str
    """Whose answers are compared with the fine-tuned model's: base, none, or a file in data/opponents."""
    card_rows: Whole = Field(ge=1)
    """Test rows from which the card's good and corrupted answers are made."""
    confidence: Number = Field(gt=0, lt=1)
    """Of every interval."""
    resamples: Whole = Field(ge=100)
    """Bootstrap samples behind every interval."""
    seed: Whole = Field(ge=0)
    """Of bootstrap and corruption."""

    @model_validator(mode="after")
    def _name_judges(self) -> "JudgeParams":
        for name in self.endpoints:
            if name == EMBEDDED or not re.fullmatch(r"[A-Za-z0-9._-]+", name):
                raise ValueError(f"endpoints: '{name}' is no name for an endpoint; take letters, digits, . _ or -")
        known = [EMBEDDED, *self.endpoints]
        unknown = [name for name in self.judges if name not in known]
        if unknown:
            raise ValueError(f"judges: no endpoint is called '{unknown[0]}'; known: {', '.join(known)}")
        if len(set(self.judges)) < len(self.judges):
            raise ValueError("judges: one of them stands there twice")
        return self


@app.callback()
@one_line_errors()
def main(
    context: typer.Context,
    responses: Annotated[Path, typer.Option(help="Both models' answers.")] = Path("data/responses.parquet"),
    base_model: Annotated[Path, typer.Option(help="Model for the judge's likelihoods.")] = Path("data/base_model"),
    opponents: Annotated[Path, typer.Option(help="Responses of other experiments.")] = Path("data/opponents"),
    finetune_metrics: Annotated[Path, typer.Option(help="For the row in MLflow.")] = Path("metrics/finetune.json"),
    scores: Annotated[Path, typer.Option(help="Written: scores of each row.")] = Path("data/scores.parquet"),
    verdicts: Annotated[Path, typer.Option(help="Written: every judge's words.")] = Path("data/verdicts.parquet"),
    review: Annotated[Path, typer.Option(help="Written: the page to read.")] = Path("data/review.html"),
    metrics: Annotated[Path, typer.Option(help="Written: all figures.")] = Path("metrics/judge.json"),
    params: Annotated[Path, typer.Option(help="Parameters.")] = Path("params.yaml"),
) -> None:
    if context.invoked_subcommand:
        return
    settings = JudgeParams.load(params)

    from stages.judging.panel import find_opponent, make_judges
    from stages.judging.responses import read_responses
    from stages.judging.review import write_review
    from stages.judging.scoring import (
        figures_of,
        in_words,
        judge_with,
        said_of,
        score_rows,
        write_scores,
    )
    from stages.judging.verdicts import write_verdicts
    from stages.pipeline.files import sha256_of, write_json
    from stages.pipeline.progress import say
    from stages.pipeline.tracking import log_judge
    from stages.pipeline.tracking_files import Files

    rows, _ = read_responses(responses)
    opponent = find_opponent(settings.pairwise, rows, opponents)
    tried = settings.model_dump(include={"card_rows", "seed"})
    asked = settings.model_dump(include={"scale", "rubric", "seed"})
    judges = make_judges(settings.judges, settings.endpoints, base_model, **asked)
    judged = [judge_with(judge, rows, opponent, **tried) for judge in judges]
    scored = score_rows(rows, judged[0])
    summary = figures_of(rows, judged, **settings.model_dump(include={"confidence", "resamples", "seed"}))
    mark = sha256_of(responses)
    write_scores(scores, scored)
    write_verdicts(verdicts, said_of(rows, judged), {"responses_sha256": mark})
    by_judge = {one.judge: [verdict.score for verdict in one.own] for one in judged}
    write_review(review, rows, scored, summary, judges=by_judge, responses_sha256=mark)
    write_json(metrics, summary)
    kept = {"responses": responses, "scores": scores, "review": review, "base_model": base_model}
    log_judge(Files(params, finetune_metrics, judged=metrics, **kept))
    say(f"judge: {in_words(summary)}; read {review}")


@app.command()
@one_line_errors()
def calibrate(
    prompts: Annotated[Path, typer.Option(help="Rows to make known answers from; never those of the card.")] = Path(
        "data/split/train.parquet"
    ),
    base_model: Annotated[Path, typer.Option(help="Model for the judge's likelihoods.")] = Path("data/base_model"),
    rows: Annotated[int, typer.Option(min=1, help="At most so many rows.")] = 200,
    seed: Annotated[int, typer.Option(min=0, help="Of corruption.")] = 20,
) -> None:
    """Fit the embedded judge's weights anew on known good and corrupted answers, and write them beside its code."""
    from stages.instructions.prompts import read_prompts
    from stages.judging.calibration import as_rows, fit
    from stages.judging.embedded import WEIGHTS
    from stages.pipeline.files import write_json
    from stages.pipeline.progress import say

    weights = fit(as_rows(read_prompts(prompts)), base_model, limit=rows, seed=seed)
    write_json(WEIGHTS, weights)
    say(f"judge: {weights} written to {WEIGHTS}; commit them")


@app.command()
@one_line_errors()
def import_reviews(
    files: Annotated[list[Path], typer.Argument(help="Files that data/review.html saved.", metavar="FILE...")],
    responses: Annotated[Path, typer.Option(help="What they are of.")] = Path("data/responses.parquet"),
    verdicts: Annotated[Path, typer.Option(help="The judges' words.")] = Path("data/verdicts.parquet"),
    reviews: Annotated[Path, typer.Option(help="Where reviews are kept.")] = Path("data/reviews"),
    metrics: Annotated[Path, typer.Option(help="Written: all figures.")] = Path("metrics/reviews.json"),
) -> None:
    """Keep people's reviews in data/reviews, and hold all that are of these responses against the judges.

    Exact, Within 1 and kappa (plain, and with quadratic weights) take the judge's score on the people's scale, 1 to 5.
    Votes are wins, losses and ties against the base model; Agree is the judge's pairwise verdict being the same.
    """
    from stages.judging.agreement import graded_by_judge, headlines, summarize_reviews, table_of
    from stages.judging.responses import read_responses
    from stages.judging.reviews import import_reviews as keep
    from stages.judging.reviews import read_reviews
    from stages.judging.verdicts import read_verdicts
    from stages.pipeline.files import sha256_of, write_json
    from stages.pipeline.progress import say
    from stages.pipeline.tracking import log_reviews
    from stages.pipeline.tracking_files import Files

    rows, _ = read_responses(responses)
    judges = graded_by_judge(read_verdicts(verdicts)[0])
    lines = keep(files, responses, [row.id for row in rows], reviews)
    figures = summarize_reviews(list(read_reviews(reviews, sha256_of(responses)).values()), judges)
    write_json(metrics, figures)
    log_reviews(Files(responses=responses), headlines(figures), metrics)
    for line in lines:
        say(line)
    print(table_of(figures))


if __name__ == "__main__":
    app()
