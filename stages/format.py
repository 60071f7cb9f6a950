"""Raw instructions -> prompts.

Reads every .json and .jsonl file of Alpaca rows (instruction, input, output, category) in data/raw, renders each row
with the prompt template, and writes data/prompts.parquet. A row that cannot be used goes to data/rejected.jsonl with
its file, line and reason.
"""

from collections import Counter
from pathlib import Path
from typing import Annotated, ClassVar

import typer

from stages.pipeline.errors import UserError, one_line_errors
from stages.pipeline.params import Params

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


class FormatParams(Params):
    """Section `format` of params.yaml."""

    section: ClassVar[str] = "format"
    template: str
    """Prompt template: alpaca, phi3 or chatml."""


@app.command(help=__doc__)
@one_line_errors()
def main(
    raw: Annotated[Path, typer.Option(help="Folder of instruction data.")] = Path("data/raw"),
    prompts: Annotated[Path, typer.Option(help="Written: the prompts.")] = Path("data/prompts.parquet"),
    rejected: Annotated[Path, typer.Option(help="Written: rows that cannot be used.")] = Path("data/rejected.jsonl"),
    metrics: Annotated[Path, typer.Option(help="Written: row counts.")] = Path("metrics/format.json"),
    params: Annotated[Path, typer.Option(help="Parameters.")] = Path("params.yaml"),
) -> None:
    settings = FormatParams.load(params)

    from stages.instructions.prompts import Prompt, TemplateMark, write_prompts
    from stages.instructions.readers import Rejected, read_folder
    from stages.instructions.templates import find_template
    from stages.pipeline.files import write_json, write_jsonl
    from stages.pipeline.progress import say

    template = find_template(settings.template)
    kept: dict[str, Prompt] = {}
    bad: list[Rejected] = []
    duplicates = 0
    for row in read_folder(raw):
        if isinstance(row, Rejected):
            bad.append(row)
        elif row.id in kept:
            duplicates += 1
            first = kept[row.id]
            bad.append(Rejected(row.file, row.line, f"duplicate of {first.file}:{first.line}"))
        else:
            segments = template.render(row.instruction, row.input, row.response)
            fields = (row.id, row.category, row.instruction, row.input, row.response, row.file, row.line)
            kept[row.id] = Prompt(*fields, segments)
    if not kept:
        reasons = Counter(row.reason for row in bad).most_common(1)
        raise UserError(f"{raw}: no valid row among {len(bad)}; most often: {reasons[0][0] if reasons else 'no rows'}")

    write_prompts(prompts, list(kept.values()), TemplateMark(template.name, template.hash, template.end))
    write_jsonl(rejected, ({"file": row.file, "line": row.line, "reason": row.reason} for row in bad))
    counts = {
        "rows_read": len(kept) + len(bad),
        "rows_kept": len(kept),
        "rows_rejected": len(bad) - duplicates,
        "duplicates_removed": duplicates,
    }
    write_json(metrics, counts)
    listed = f"; see {rejected}" if bad else ""
    say(
        f"format: {counts['rows_read']} rows read, {len(kept)} kept, "
        f"{counts['rows_rejected']} rejected, {duplicates} duplicates{listed}"
    )


if __name__ == "__main__":
    app()
