"""Splits -> token arrays.

Tokenizes every example with the model's own tokenizer (through tiktoken), appends end-of-text, shifts targets by one,
sets -100 where no loss is wanted, and packs or pads examples into rows. metrics/tokens.json is the audit of the labels;
rows too long to keep one response token are listed in data/tokens/dropped.jsonl.
"""

from pathlib import Path
from typing import Annotated, ClassVar, Literal

import typer
from pydantic import Field

from stages.pipeline.errors import UserError, one_line_errors
from stages.pipeline.params import Params, Whole

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    invoke_without_command=True,
    help=__doc__,
)


class CollateParams(Params):
    """Section `collate` of params.yaml."""

    section: ClassVar[str] = "collate"
    strategy: Literal["pack", "pad"]
    """pack: several examples a row, attention kept inside each; pad: one example a row."""
    max_seq_len: Whole = Field(ge=2)
    """Width of a row in tokens; a longer example is truncated."""
    mask_instruction: bool
    """Whether only the response carries a loss."""


@app.callback()
@one_line_errors()
def main(
    context: typer.Context,
    splits: Annotated[Path, typer.Option(help="Folder with one file of prompts a split.")] = Path("data/split"),
    base_model: Annotated[Path, typer.Option(help="Base model, for its tokenizer.")] = Path("data/base_model"),
    tokens: Annotated[Path, typer.Option(help="Written: token arrays, a folder a split.")] = Path("data/tokens"),
    metrics: Annotated[Path, typer.Option(help="Written: audit of the labels.")] = Path("metrics/tokens.json"),
    params: Annotated[Path, typer.Option(help="Parameters.")] = Path("params.yaml"),
) -> None:
    if context.invoked_subcommand:
        return
    settings = CollateParams.load(params)

    from stages.instructions.deal import SPLITS
    from stages.instructions.prompts import read_template_mark
    from stages.pipeline.files import read_json, replacing_folder, write_json, write_jsonl
    from stages.pipeline.progress import say, stopwatch
    from stages.tokens.arrays import read_arrays, write_arrays
    from stages.tokens.audit import audit
    from stages.tokens.split_tokens import tokenize_split
    from stages.tokens.tokenizer import Tokenizer

    elapsed = stopwatch()
    config = read_json(base_model / "config.json")
    context_length = config.get("max_position_embeddings", config.get("n_positions"))  # the latter is GPT-2's name
    if context_length is not None and settings.max_seq_len > context_length:
        raise UserError(
            f"{params}: collate.max_seq_len: {settings.max_seq_len} is beyond the model's context of {context_length}"
        )
    tokenizer = Tokenizer(base_model)
    marks = {read_template_mark(splits / f"{name}.parquet") for name in SPLITS}
    if len(marks) > 1:
        raise UserError(f"{splits}: its files were made with different templates; delete it and run `dvc repro`")
    counts, dropped = {}, []
    with replacing_folder(tokens) as folder:
        for name in SPLITS:
            path = splits / f"{name}.parquet"
            split = tokenize_split(path, tokenizer, strategy=settings.strategy, max_seq_len=settings.max_seq_len)
            if split is None:
                raise UserError(
                    f"{path}: no prompt leaves room for a response in {settings.max_seq_len} tokens; "
                    "raise collate.max_seq_len"
                )
            write_arrays(
                folder / name,
                split.examples,
                split.row_of,
                split.ids,
                end_of_text=tokenizer.end_of_text,
                mask_instruction=settings.mask_instruction,
            )
            counts[name] = audit(split, read_arrays(folder / name), tokenizer.end_of_text)
            dropped += [{**row, "split": name, "reason": "prompt too long"} for row in split.dropped]
        write_json(folder / "tokens.json", {"template": marks.pop()._asdict(), "end_of_text": tokenizer.end_of_text})
        write_jsonl(folder / "dropped.jsonl", dropped)
    write_json(metrics, counts)
    train = counts["train"]
    left_out = f" (see {tokens}/dropped.jsonl)" if dropped else ""
    say(
        f"tokenize-and-collate: {train['examples']} train examples, {train['tokens']} tokens ({tokenizer.engine}), "
        f"{train['supervised_tokens']} with a loss, {train['padding_fraction']:.1%} padding; "
        f"{sum(c['truncated'] for c in counts.values())} truncated, {len(dropped)} dropped{left_out}; {elapsed()}"
    )


@app.command()
@one_line_errors()
def inspect(
    example: Annotated[str, typer.Argument(help="Id of an example, or its number in the split, from 0.")],
    split: Annotated[Literal["train", "validation", "test"] | None, typer.Option(help="Where to look.")] = None,
    html: Annotated[Path | None, typer.Option(help="Written: the same as a page.")] = None,
    tokens: Annotated[Path, typer.Option(help="Token arrays.")] = Path("data/tokens"),
    splits: Annotated[Path, typer.Option(help="Folder of prompts.")] = Path("data/split"),
    base_model: Annotated[Path, typer.Option(help="Base model, for its tokenizer.")] = Path("data/base_model"),
) -> None:
    """Show one example token by token: id, target, and by colour where the loss is."""
    from rich.console import Console

    from stages.pipeline.progress import say
    from stages.tokens.inspection import inspect_example, show, write_page
    from stages.tokens.tokenizer import Tokenizer

    found = inspect_example(example, split, tokens, splits, Tokenizer(base_model))
    show(found, Console(highlight=False))
    if html:
        write_page(html, found)
        say(f"written to {html}")


if __name__ == "__main__":
    app()
