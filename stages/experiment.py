"""Beside the flow: what an experiment came to, and which of several is the best."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from stages.pipeline.errors import one_line_errors

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help=__doc__,
    no_args_is_help=True,
)


Confidence = Annotated[float, typer.Option(min=0.5, max=0.9999, help="Of every interval.")]
Resamples = Annotated[int, typer.Option(min=100, help="Bootstrap samples behind every interval.")]
Seed = Annotated[int, typer.Option(min=0, help="Of the bootstrap.")]


@app.callback()
def main() -> None:
    pass


@app.command()
@one_line_errors()
def summary(
    metrics: Annotated[Path, typer.Option(help="Folder of the stages' metrics.")] = Path("metrics"),
    checkpoint: Annotated[Path, typer.Option(help="It says where it was made.")] = Path("data/checkpoint"),
) -> None:
    """Where overfitting began, the scores, and where to look; from the files of the last `dvc repro`."""
    from stages.experiments.summary import summarize
    from stages.pipeline.environment import changed, read_environment, this_environment
    from stages.pipeline.files import read_json

    names = ("split", "tokens", "finetune", "judge", "benchmark")
    elsewhere = changed(read_environment(checkpoint), this_environment())
    print("\n".join(summarize(*(read_json(metrics / f"{name}.json") for name in names), elsewhere)))


@app.command()
@one_line_errors()
def compare(
    first: Annotated[str, typer.Argument(help="An experiment, a revision, a folder, or `workspace`.", metavar="A")],
    second: Annotated[str, typer.Argument(help="Another one.", metavar="B")],
    rows: Annotated[int, typer.Option(min=0, help="Rows shown that fell, and that rose, most.")] = 5,
    json: Annotated[Path | None, typer.Option(help="Written: all figures and all rows that differ.")] = None,
    confidence: Confidence = 0.95,
    resamples: Resamples = 10000,
    seed: Seed = 1,
) -> None:
    """Two experiments on the same rows: scores, their difference with its interval, and the rows that changed most.

    A and B are each an experiment of DVC, a Git revision, a folder with data/ and metrics/ such as another clone, or
    `workspace`. Rows are matched by their id, and compared where instruction and reference are the same.
    """
    from tempfile import TemporaryDirectory

    from stages.experiments import comparison
    from stages.experiments.tables import comparison_text
    from stages.pipeline.files import write_json
    from stages.pipeline.progress import bar

    with TemporaryDirectory() as folder, bar("compare", total=2 * comparison.NUM_FILES) as progress:
        read = comparison.read_experiment
        one = read(first, Path(folder) / "a", progress.advance)
        other = read(second, Path(folder) / "b", progress.advance)
    figures = comparison.compare(one, other, confidence=confidence, resamples=resamples, seed=seed)
    found = comparison.differences(one, other)
    fell, rose = comparison.most_changed(found, rows)
    if json:
        write_json(json, figures | {"changed": comparison.as_json(found)})
    print(comparison_text(figures, fell, rose))


@app.command()
@one_line_errors()
def arena(
    revisions: Annotated[
        list[str] | None,
        typer.Argument(help="Experiments, revisions, folders, `workspace`; none: the workspace and all experiments."),
    ] = None,
    votes: Annotated[Literal["people", "judges", "all"], typer.Option(help="Whose votes count.")] = "all",
    anchor: Annotated[str, typer.Option(help="The player that is rated 1000.")] = "base",
    order_of_scores: Annotated[
        bool, typer.Option(help="Let a judge in process decide between two answers by its scores of them.")
    ] = True,
    reviews: Annotated[Path, typer.Option(help="Where people's votes are.")] = Path("data/reviews"),
    metrics: Annotated[Path, typer.Option(help="Written: the ratings.")] = Path("metrics/arena.json"),
    confidence: Confidence = 0.95,
    resamples: Resamples = 1000,
    seed: Seed = 1,
) -> None:
    """All experiments and the base model in one Bradley-Terry rating, as Chatbot Arena has them.

    Votes are the judges' pairwise verdicts and people's blind votes (`judge import-reviews`). Low and High are the ends
    of the bootstrap interval. 400 points are odds of 10 to 1.
    """
    from tempfile import TemporaryDirectory

    from stages.experiments.arena import rate_entries, read_entries
    from stages.experiments.revisions import WORKSPACE, experiment_names
    from stages.experiments.tables import arena_text
    from stages.judging.reviews import read_reviews
    from stages.pipeline.files import write_json
    from stages.pipeline.progress import bar, say

    people = [] if votes == "judges" else list(read_reviews(reviews).values())
    places = revisions or [WORKSPACE, *experiment_names()]
    with TemporaryDirectory() as folder, bar("arena", total=len(places)) as progress:
        entries, skipped = read_entries(places, Path(folder), progress.advance)
    for reason in skipped.values():
        say(f"arena: skipped {reason}")
    figures = rate_entries(
        entries,
        people,
        judges=votes != "people",
        order_of_scores=order_of_scores,
        anchor=anchor,
        confidence=confidence,
        resamples=resamples,
        seed=seed,
    )
    for reason in figures["left_out"]:
        say(f"arena: left out {reason}")
    write_json(metrics, figures | {"skipped": skipped})
    print(arena_text(figures))


if __name__ == "__main__":
    app()
