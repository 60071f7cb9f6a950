"""Prompts -> train, validation and test, with no leak between them.

Near-duplicate prompts are joined into clusters; a cluster is dealt whole, by a salted hash of its first row, so that
rows added at the end leave old rows where they are. A row near two splits is withheld and listed in
data/split/withheld.jsonl. A split that the data fixes (column `split`) is kept. The stage fails if a prompt still has a
near-duplicate in another split.
"""

from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self

import typer
from pydantic import Field, model_validator

from stages.pipeline.errors import one_line_errors
from stages.pipeline.params import Number, Params

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


class SplitParams(Params):
    """Section `split` of params.yaml."""

    section: ClassVar[str] = "split"
    train_fraction: Number = Field(gt=0, lt=1)
    """Share of prompts to train on."""
    validation_fraction: Number = Field(gt=0, lt=1)
    """Share of prompts to watch for overfitting."""
    test_fraction: Number = Field(gt=0, lt=1)
    """Share of prompts kept for judging; never seen in training."""
    salt: str
    """Any text; another one deals anew."""
    stratify: bool
    """Whether the shares are kept within each category."""
    near_duplicate_threshold: Number = Field(ge=0.3, le=1)
    """Jaccard similarity of character shingles from which two prompts stay together."""
    between_splits: Literal["withhold", "join"]
    """What becomes of a row near two splits: withhold leaves it out; join moves the later cluster."""
    fixed_leaks: Literal["fail", "withhold"]
    """What becomes of near-duplicates across splits that the data fixes."""

    @model_validator(mode="after")
    def _fractions_add_up(self) -> Self:
        total = self.train_fraction + self.validation_fraction + self.test_fraction
        if abs(total - 1) > 1e-6:
            raise ValueError(f"train, validation and test fractions must add up to 1, not {total:g}")
        return self

    @property
    def fractions(self) -> dict[str, float]:
        """By the name of the split."""
        return {"train": self.train_fraction, "validation": self.validation_fraction, "test": self.test_fraction}


@app.command(help=__doc__)
@one_line_errors()
def main(
    prompts: Annotated[Path, typer.Option(help="Prompts to split.")] = Path("data/prompts.parquet"),
    splits: Annotated[Path, typer.Option(help="Written: a folder with one file a split.")] = Path("data/split"),
    metrics: Annotated[Path, typer.Option(help="Written: counts, clusters, leaks.")] = Path("metrics/split.json"),
    params: Annotated[Path, typer.Option(help="Parameters.")] = Path("params.yaml"),
) -> None:
    settings = SplitParams.load(params)

    from stages.instructions.partition import partition
    from stages.instructions.split_files import count, read_rows, refuse_empty, refuse_leaks, write_splits
    from stages.pipeline.files import write_json
    from stages.pipeline.progress import say, stopwatch

    elapsed = stopwatch()
    rows, texts, places = read_rows(prompts)
    dealt = partition(
        rows,
        texts,
        fractions=tuple(settings.fractions.values()),
        salt=settings.salt,
        near_duplicate_threshold=settings.near_duplicate_threshold,
        stratify=settings.stratify,
        join=settings.between_splits == "join",
    )
    refuse_leaks(prompts, rows, dealt, places, fixed_too=settings.fixed_leaks == "fail")
    refuse_empty(prompts, dealt)
    write_splits(splits, prompts, rows, dealt, places)
    counts = count(rows, dealt)
    write_json(metrics, counts)
    left_out = f"; {len(dealt.between)} withheld, see {splits}/withheld.jsonl" if dealt.between else ""
    unsure = f"; {dealt.pairs_not_compared} pairs not compared" if dealt.pairs_not_compared else ""
    say(
        f"split: {counts['train']} train, {counts['validation']} validation, {counts['test']} test; "
        f"{len(dealt.cluster_sizes)} clusters of near-duplicates ({sum(dealt.cluster_sizes)} rows) kept together, "
        f"no leaks{left_out}{unsure}; {elapsed()}"
    )
    for name, fraction in settings.fractions.items():
        if counts[name] < fraction * len(rows) / 2:
            say(
                f"warning: {name} got {counts[name]} of {len(rows)} rows where {fraction:.0%} were asked for: rows are "
                "dealt by their hash, near-duplicates together; split.stratify or another split.salt deals otherwise"
            )


if __name__ == "__main__":
    app()
