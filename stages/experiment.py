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
    split, tokens, finetuned, judged, measured = (read_json(metrics / f"{name}.json") for name in names)
    elsewhere = changed(read_environment(checkpoint), this_environment())
    print("\n".join(summarize(split, tokens, finetuned, judged, measured, elsewhere)))


@app.command()
@one_line_errors()
def compare(
    first: Annotated[str, typer.Argument(help="An experiment, a revision, a folder, or `workspace`.", metavar="A")],
    second: Annotated[str, typer.Argument(help="Another one.", metavar="B")],
    rows: Annotated[int, typer.Option(min=0, help="Answers shown that fell, and that rose, most.")] = 5,
    json: Annotated[Path | None, typer.Option(help="Written: all figures and all rows that differ.")] = None,
    markdown: Annotated[Path | None, typer.Option(help="Written: the comparison for a pull request.")] = None,
    html: Annotated[
        Path | None, typer.Option(help="Written: a page with loss curves and answers side by side.")
    ] = None,
    confidence: Confidence = 0.95,
    resamples: Resamples = 10000,
    seed: Seed = 1,
) -> None:
    """What changed between two experiments, and what that did to the results.

    A and B are each an experiment of DVC (`dvc exp show` lists them), a commit, branch or tag, a folder with data/ and
    metrics/ such as another clone, or `workspace`. Nothing is run, and no weights are fetched.

    First what differs of that which they were made from: parameters, rows of data (a row's id is a hash of its text),
    code, other inputs, the base model, the environment. Then losses, onset, scores on the same rows (B - A with its
    interval; rows are matched by id, and compared where instruction and reference are the same), benchmarks, and the
    answers that changed most. What one of them does not have is left out, and a line says so.

    Examples: `compare main workspace`; `compare main HEAD --markdown comparison.md`; `compare ../clone workspace`.
    """
    from tempfile import TemporaryDirectory

    from stages.experiments import comparison
    from stages.experiments.comparison_markdown import comparison_markdown
    from stages.experiments.comparison_scores import as_json, differences, most_changed
    from stages.experiments.tables import comparison_text
    from stages.pipeline.files import write_json, write_text

    with TemporaryDirectory() as folder:
        one, other = (
            comparison.read_experiment(place, Path(folder) / side) for side, place in (("a", first), ("b", second))
        )
        figures = comparison.compare(one, other, confidence=confidence, resamples=resamples, seed=seed)
        found = differences(one.rows, other.rows)
        fell, rose = most_changed(found, rows)
        if html:
            from stages.experiments.comparison_page import write_page

            write_page(html, one, other, figures, [*fell, *rose])
    if json:
        write_json(json, figures | {"changed": as_json(found)})
    if markdown:
        write_text(markdown, comparison_markdown(figures, [*fell, *rose]))
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


@app.command()
@one_line_errors()
def sweep(
    set_param: Annotated[
        list[str] | None,
        typer.Option("-S", "--set-param", help="A parameter and its values, NAME=V1,V2; several make a grid."),
    ] = None,
    sample: Annotated[int | None, typer.Option(min=1, help="Run only so many of the points, drawn at random.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of --sample.")] = 1,
    workers: Annotated[
        int, typer.Option(min=1, help="Experiments at the same time; on one CPU or one GPU they share it.")
    ] = 1,
    dry: Annotated[bool, typer.Option("--dry", help="Show what would run, and how long it may take.")] = False,
    metrics: Annotated[Path, typer.Option(help="Folder of the stages' metrics.")] = Path("metrics"),
) -> None:
    """Search over parameters: an experiment at every point of a grid, on DVC's queue, and a table at the end.

    Without -S: learning rate, epochs, masking and LoRA rank, seven experiments. Each starts from the workspace as it is
    and leaves it alone. Ctrl-C ends the watching only. Run again, also after a kill or a crash, it goes on: what is
    there is not run twice, what was lost or has failed is queued anew.

    With CUDA_VISIBLE_DEVICES=0,1 and --workers 2 each worker has a GPU of its own.

    Example: `sweep -S finetune.learning_rate=1e-4,2e-4 -S finetune.epochs=2,4`, first with --dry.
    """
    from stages.experiments import sweep as search
    from stages.experiments import sweep_points, sweep_queue, sweep_table
    from stages.pipeline.errors import UserError
    from stages.pipeline.progress import say
    from stages.pipeline.stopping import Stop, stoppable

    sweep_queue.check_repository()
    points = sweep_points.points_of([set_param] if set_param else sweep_points.DEFAULT, search.workspace_params())
    if sample:
        points = sweep_points.sample(points, sample, seed)
    if dry:
        print(sweep_table.plan_text(points))
        print("\n".join(search.announcement(points, workers, metrics)))
        return
    stop = Stop()
    with stoppable(stop), sweep_queue.alone():
        named, wanted = search.sort_out(points)
        if len(wanted) < len(named):
            say(f"sweep: {search.already(named, wanted)}")
        for line in search.announcement(wanted, workers, metrics) if wanted else ():
            say(f"sweep: {line}")
        search.run(named, wanted, workers, stop)
    done, failed = search.outcome(named)
    search.mirror(done)
    names = list(dict.fromkeys(name for point in points for name in point.values))
    print(sweep_table.results_text(done, names, sweep_queue.workspace()))
    if failed:
        raise UserError(
            f"{len(failed)} of {len(named)} experiments failed: {', '.join(failed)}; `dvc queue logs {failed[0]}` says "
            "why; to try them again, run the same again"
        )


@app.command()
@one_line_errors()
def report(
    html: Annotated[Path, typer.Option(help="Written: the page.")] = Path("metrics/report.html"),
) -> None:
    """Everything of the experiment in this workspace on one page, to be read, printed, or sent to somebody.

    Verdict and what to beware of, data, labels, loss curves with the onset, scores, the judge's card, best and worst
    answers, people's reviews, benchmarks, parameters, lineage. A part that has not run yet says so. The page holds all
    it shows and needs no network; data/review.html has every answer.
    """
    from stages.experiments.lineage_record import read_record
    from stages.experiments.report import write_report
    from stages.pipeline.progress import say
    from stages.pipeline.tracking import find_runs

    runs = [run._asdict() for run in find_runs(Path("metrics/finetune.json"))]
    write_report(html, Path(), read_record(Path()), runs)
    say(f"report: written to {html}")


@app.command()
@one_line_errors()
def trace(
    row: Annotated[str, typer.Argument(help="An id, the beginning of one, or file:line of a raw file.", metavar="ID")],
    json: Annotated[Path | None, typer.Option(help="Written: the same, with every text in full.")] = None,
) -> None:
    """Where a row comes from, and what became of it: from the raw line to prompt, split, tokens, training and score.

    Ids are in data/scores.parquet, on data/review.html and in the ledgers: train rows, rejected and withheld rows have
    a lineage too, as far as they came. At the end stand the runs in MLflow, the commit, and whether the files are still
    those that DVC recorded.
    """
    from stages.experiments.lineage import trace as trace_row
    from stages.experiments.lineage_record import read_record
    from stages.experiments.lineage_text import lineage_text
    from stages.pipeline.files import write_json
    from stages.pipeline.tracking import find_runs

    found, record = trace_row(row, Path()), read_record(Path())
    runs = [run._asdict() for run in find_runs(Path("metrics/finetune.json"))]
    if json:
        write_json(json, found | {"runs": runs, "record": record._asdict()})
    print(lineage_text(found, record, runs))


@app.command()
@one_line_errors()
def sync(
    revisions: Annotated[
        list[str] | None,
        typer.Argument(help="Experiments, revisions, folders, `workspace`; none: the workspace."),
    ] = None,
    all: Annotated[bool, typer.Option("--all", help="The workspace, HEAD, and all experiments of DVC.")] = False,
) -> None:
    """Write into MLflow what it lacks of experiments that have run, from their files.

    For a server that was down or is new, and for a teammate's experiments (`dvc exp pull` first). The store is that of
    MLFLOW_TRACKING_URI, or mlflow.db beside dvc.yaml. Done twice, nothing is there twice; a run that a dying server
    left half written is completed. An experiment whose files are not at hand is skipped; the exit code is then 1.
    """
    from stages.experiments import sync as syncing
    from stages.experiments.revisions import WORKSPACE, experiment_names
    from stages.pipeline.progress import say

    places = [WORKSPACE, "HEAD", *experiment_names()] if all else []
    counts = dict.fromkeys((syncing.THERE, syncing.WRITTEN, syncing.SKIPPED), 0)
    for place, outcome in syncing.sync([*(revisions or []), *places] or [WORKSPACE]):
        counts[outcome.split(":")[0]] += 1
        say(f"sync: {place} {outcome}")
    found = ", ".join(f"{count} {outcome}" for outcome, count in counts.items() if count)
    number = sum(counts.values())
    print(f"{number} experiment{'s' if number > 1 else ''}: {found}")
    if counts[syncing.SKIPPED]:
        raise typer.Exit(1)


if __name__ == "__main__":
    app()
