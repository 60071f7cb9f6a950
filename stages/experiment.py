"""Beside the flow: what an experiment came to."""

from pathlib import Path
from typing import Annotated

import typer

from stages.pipeline.errors import one_line_errors

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help=__doc__,
    no_args_is_help=True,
)


@app.callback()
def main() -> None:
    pass


@app.command()
@one_line_errors()
def summary(
    metrics: Annotated[Path, typer.Option(help="Folder of the stages' metrics.")] = Path("metrics"),
) -> None:
    """Where overfitting began, the scores, and where to look; from the files of the last `dvc repro`."""
    from stages.experiments.summary import summarize
    from stages.pipeline.files import read_json

    names = ("split", "tokens", "finetune", "judge")
    print("\n".join(summarize(*(read_json(metrics / f"{name}.json") for name in names))))


if __name__ == "__main__":
    app()
