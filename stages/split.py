"""Prompts -> train, validation and test, with no leak between them.

Near-duplicate prompts are joined into clusters; a cluster is dealt whole, by a salted hash of its content, so that new
rows leave old rows where they are. The stage fails if a held-out prompt still has a near-duplicate in train.
"""

from collections import Counter
from pathlib import Path
from typing import Annotated, ClassVar, Self

import typer
from pydantic import Field, model_validator

from stages.pipeline.errors import UserError, one_line_errors
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
    near_duplicate_threshold: Number = Field(gt=0, le=1)
    """Jaccard similarity of character shingles from which two prompts stay together."""

    @model_validator(mode="after")
    def _fractions_add_up(self) -> Self:
        total = self.train_fraction + self.validation_fraction + self.test_fraction
        if abs(total - 1) > 1e-6:
            raise ValueError(f"train, validation and test fractions must add up to 1, not {total:g}")
        return self


@app.command(help=__doc__)
@one_line_errors()
def main(
    prompts: Annotated[Path, typer.Option(help="Prompts to split.")] = Path("data/prompts.parquet"),
    splits: Annotated[Path, typer.Option(help="Written: a folder with one file a split.")] = Path("data/split"),
    metrics: Annotated[Path, typer.Option(help="Written: counts, clusters, leaks.")] = Path("metrics/split.json"),
    params: Annotated[Path, typer.Option(help="Parameters.")] = Path("params.yaml"),
) -> None:
    settings = SplitParams.load(params)

    from stages.instructions.deal import SPLITS, deal
    from stages.instructions.duplicates import cluster, leaks
    from stages.instructions.prompts import Prompt, read_prompts, read_template_mark, write_prompts
    from stages.pipeline.files import replacing_folder, write_json
    from stages.pipeline.progress import say

    rows = read_prompts(prompts)
    texts = [f"{row.instruction}\n{row.input}" for row in rows]
    clusters = cluster(texts, settings.near_duplicate_threshold)
    fractions = (settings.train_fraction, settings.validation_fraction, settings.test_fraction)
    dealt = deal([row.id for row in rows], clusters, fractions, settings.salt)
    members: dict[str, list[Prompt]] = {name: [] for name in SPLITS}
    split_texts: dict[str, list[str]] = {name: [] for name in SPLITS}
    for row, text, name in zip(rows, texts, dealt, strict=True):
        members[name].append(row)
        split_texts[name].append(text)
    for name in SPLITS:
        if not members[name]:
            raise UserError(
                f"{prompts}: {len(rows)} prompts in {len(set(clusters))} clusters leave the {name} split empty; "
                f"add rows, raise split.{name}_fraction or change split.salt"
            )
    leaked = leaks(
        split_texts["train"], split_texts["validation"] + split_texts["test"], settings.near_duplicate_threshold
    )
    if leaked:
        held_out = (members["validation"] + members["test"])[leaked[0][0]]
        twin = members["train"][leaked[0][1]]
        raise UserError(
            f"{prompts}: {len(leaked)} held-out prompts have a near-duplicate in train, the first {held_out.file}:"
            f"{held_out.line} and {twin.file}:{twin.line}; remove one of the two"
        )

    template = read_template_mark(prompts)
    with replacing_folder(splits) as folder:
        for name in SPLITS:
            write_prompts(folder / f"{name}.parquet", members[name], template)
    shared = [size for size in Counter(clusters).values() if size > 1]
    counts = {name: len(members[name]) for name in SPLITS}
    write_json(metrics, counts | {"near_duplicate_clusters": len(shared), "leaked_rows": len(leaked)})
    say(
        f"split: {counts['train']} train, {counts['validation']} validation, {counts['test']} test; "
        f"{len(shared)} clusters of near-duplicates ({sum(shared)} rows) kept together, no leaks"
    )


if __name__ == "__main__":
    app()
