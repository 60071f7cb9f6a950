"""Raw instructions -> prompts.

Reads every file in data/raw: JSON, JSON Lines, CSV or Parquet, also .gz and .zst; rows of Alpaca, prompt and
completion, OpenAI messages or ShareGPT conversations, recognised in each file. Renders each row with the prompt
template and writes data/prompts.parquet. A row that is not used goes to data/rejected.jsonl with its file, line, id and
reason.
"""

import gc
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import typer
from pydantic import Field

from stages.pipeline.errors import UserError, one_line_errors
from stages.pipeline.params import Number, Params, Whole

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


class FormatParams(Params):
    """Section `format` of params.yaml."""

    section: ClassVar[str] = "format"
    template: str
    """Prompt template: alpaca, phi3, chatml, model (the base model's own) or a .jinja file in data/templates."""
    row_schema: Literal["auto", "alpaca", "prompt_completion", "messages", "sharegpt"]
    """What rows look like; auto: recognised in each file."""
    columns: dict[str, str]
    """Field of a schema: the column that holds it in your files."""
    whitespace: Literal["strip", "normalize", "keep"]
    """strip: off at both ends of a text; normalize: evened out inside too; keep."""
    allow_empty_response: bool
    """Whether a row may have nothing as its last response."""
    drop_duplicates: bool
    """Whether of rows alike in every text only the first is kept."""
    max_characters: Whole = Field(ge=1)
    """Longer examples, template included, are rejected."""
    max_rejected_fraction: Number = Field(ge=0, le=1)
    """Share of a file's rows that may be unreadable before the run stops."""
    remove_benchmarks: list[str]
    """Folders in data/benchmarks; rows that overlap them are removed."""


@app.command(help=__doc__)
@one_line_errors()
def main(
    raw: Annotated[Path, typer.Option(help="Folder of instruction data.")] = Path("data/raw"),
    base_model: Annotated[Path, typer.Option(help="Base model, for its chat template.")] = Path("data/base_model"),
    templates: Annotated[Path, typer.Option(help="Folder of your own templates.")] = Path("data/templates"),
    benchmarks: Annotated[Path, typer.Option(help="Folder of benchmarks.")] = Path("data/benchmarks"),
    prompts: Annotated[Path, typer.Option(help="Written: the prompts.")] = Path("data/prompts.parquet"),
    rejected: Annotated[Path, typer.Option(help="Written: rows that are not used.")] = Path("data/rejected.jsonl"),
    metrics: Annotated[Path, typer.Option(help="Written: row counts.")] = Path("metrics/format.json"),
    params: Annotated[Path, typer.Option(help="Parameters.")] = Path("params.yaml"),
) -> None:
    settings = FormatParams.load(params)

    from stages.instructions.formatting import Formatted, format_rows
    from stages.instructions.instruction import Instruction, Rejected
    from stages.instructions.jinja_templates import find_template
    from stages.instructions.prompts import TemplateMark, writing_prompts
    from stages.instructions.readers import RawFolder
    from stages.pipeline.files import write_json, writing_jsonl
    from stages.pipeline.progress import say, stopwatch

    gc.disable()  # rows by the million and no cycles among them: looking for some took a third of the time
    elapsed = stopwatch()
    template = find_template(settings.template, base_model, templates)
    reading = {"row_schema", "columns", "whitespace", "allow_empty_response", "max_rejected_fraction"}
    overlaps: dict[int, str] = {}
    if settings.remove_benchmarks:
        from stages.instructions.benchmark_overlap import find_overlaps

        rows = RawFolder(raw, **settings.model_dump(include=reading)).rows()
        readable = (row for row in rows if isinstance(row, Instruction))
        overlaps = find_overlaps(readable, benchmarks, settings.remove_benchmarks)
    folder, formatted = RawFolder(raw, **settings.model_dump(include=reading)), Formatted()
    cleaning = settings.model_dump(include={"drop_duplicates", "max_characters"})
    mark = TemplateMark(template.name, template.hash, template.end)
    with writing_prompts(prompts, mark) as kept, writing_jsonl(rejected) as ledger:
        for row in format_rows(folder, template, formatted, overlaps=overlaps, **cleaning):
            if isinstance(row, Rejected):
                ledger(row._asdict())
            else:
                kept.add(row)
        if not formatted.kept:
            raise UserError(f"{raw}: no row can be used: {formatted.summary()}")
    write_json(metrics, formatted.counts(folder))
    say(f"format: {formatted.summary()}{f', see {rejected}' if formatted.rejected else ''}; {elapsed()}")
    for name, found in folder.files.items():
        if found.ignored_keys:
            keys = ", ".join(f"{key} ({times})" for key, times in found.ignored_keys.most_common())
            say(f"  {name}: keys not read, with their rows: {keys}")


if __name__ == "__main__":
    app()
