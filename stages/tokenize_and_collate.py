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

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


class CollateParams(Params):
    """Section `collate` of params.yaml."""

    section: ClassVar[str] = "collate"
    strategy: Literal["pack", "pad"]
    """pack: several examples a row, attention kept inside each; pad: one example a row."""
    max_seq_len: Whole = Field(ge=2)
    """Width of a row in tokens; a longer example is truncated."""
    mask_instruction: bool
    """Whether only the response carries a loss."""


@app.command(help=__doc__)
@one_line_errors()
def main(
    splits: Annotated[Path, typer.Option(help="Folder with one file of prompts a split.")] = Path("data/split"),
    base_model: Annotated[Path, typer.Option(help="Base model, for its tokenizer.")] = Path("data/base_model"),
    tokens: Annotated[Path, typer.Option(help="Written: token arrays, a folder a split.")] = Path("data/tokens"),
    metrics: Annotated[Path, typer.Option(help="Written: audit of the labels.")] = Path("metrics/tokens.json"),
    params: Annotated[Path, typer.Option(help="Parameters.")] = Path("params.yaml"),
) -> None:
    settings = CollateParams.load(params)

    from stages.instructions.deal import SPLITS
    from stages.instructions.prompts import read_prompts, read_template_mark
    from stages.pipeline.files import read_json, replacing_folder, write_json, write_jsonl
    from stages.pipeline.progress import say
    from stages.tokens.arrays import write_arrays
    from stages.tokens.audit import audit
    from stages.tokens.split_tokens import tokenize_split
    from stages.tokens.tokenizer import Tokenizer

    config = read_json(base_model / "config.json")
    context = config.get("max_position_embeddings", config.get("n_positions"))  # the latter is GPT-2's name
    if context is not None and settings.max_seq_len > context:
        raise UserError(
            f"{params}: collate.max_seq_len: {settings.max_seq_len} is beyond the model's context of {context}"
        )
    tokenizer = Tokenizer(base_model)
    template = read_template_mark(splits / "train.parquet")
    counts, dropped = {}, []
    with replacing_folder(tokens) as folder:
        for name in SPLITS:
            prompts = read_prompts(splits / f"{name}.parquet")
            split = tokenize_split(name, prompts, tokenizer, **settings.model_dump())
            if split is None:
                raise UserError(
                    f"{splits}/{name}.parquet: no prompt leaves room for a response in {settings.max_seq_len} tokens; "
                    "raise collate.max_seq_len"
                )
            write_arrays(folder / name, split.arrays)
            counts[name] = audit(split, tokenizer.end_of_text)
            dropped += [
                {"id": prompt.id, "file": prompt.file, "line": prompt.line, "split": name, "reason": "prompt too long"}
                for prompt in split.dropped
            ]
        write_json(folder / "tokens.json", {"template": template._asdict(), "end_of_text": tokenizer.end_of_text})
        write_jsonl(folder / "dropped.jsonl", dropped)
    write_json(metrics, counts)
    train = counts["train"]
    say(
        f"tokenize-and-collate: {train['examples']} train examples, {train['tokens']} tokens, "
        f"{train['supervised_tokens']} with a loss, {train['padding_fraction']:.1%} padding; "
        f"{sum(c['truncated'] for c in counts.values())} truncated, {len(dropped)} dropped"
    )


if __name__ == "__main__":
    app()
