"""Raw rows into prompts: each is kept, or it goes into the ledger with its reason."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from stages.instructions.instruction import Instruction, Rejected
from stages.instructions.prompts import Prompt, make_prompt
from stages.instructions.readers import RawFolder
from stages.instructions.templates import NoFormError, Template
from stages.pipeline.progress import bar

DUPLICATE, OVERLAP = "duplicate", "benchmark overlap"


@dataclass
class Formatted:
    """What became of the rows."""

    kept: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    """By kind of reason."""

    def counts(self, folder: RawFolder) -> dict[str, Any]:
        """Figures for metrics/format.json."""
        apart = self.rejected[DUPLICATE] + self.rejected[OVERLAP]
        return {
            "rows_read": self.kept + self.rejected.total(),
            "rows_kept": self.kept,
            "rows_rejected": self.rejected.total() - apart,
            "duplicates_removed": self.rejected[DUPLICATE],
            "benchmark_overlaps_removed": self.rejected[OVERLAP],
            "rejected_by_reason": dict(sorted(self.rejected.items())),
            "files": {
                name: {
                    "schema": found.schema,
                    "rows": found.rows,
                    "rejected": found.rejected,
                    "ignored_keys": dict(sorted(found.ignored_keys.items())),
                }
                for name, found in folder.files.items()
            },
        }

    def summary(self) -> str:
        """For the reader, the most frequent reason first."""
        reasons = ", ".join(f"{times} {kind}" for kind, times in self.rejected.most_common())
        total = self.rejected.total()
        return f"{self.kept + total} rows read, {self.kept} kept, {total} rejected{f' ({reasons})' if reasons else ''}"


def format_rows(
    folder: RawFolder,
    template: Template,
    formatted: Formatted,
    *,
    drop_duplicates: bool,
    max_characters: int,
    overlaps: Mapping[int, str],
) -> Iterator[Prompt | Rejected]:
    """Every row of `folder`, as a prompt or rejected, counted in `formatted`.

    `overlaps` says what is to be removed, by the position of a row among those that could be read.
    """
    seen: dict[str, tuple[str, int]] = {}
    copies: Counter[str] = Counter()
    readable = 0
    with bar("formatting", None) as progress:
        for row in folder.rows():
            progress.advance()
            result: Prompt | Rejected
            if isinstance(row, Rejected):
                result = row
            else:
                overlap = overlaps.get(readable)
                readable += 1
                id = row.id
                if id in seen and not drop_duplicates:
                    copies[id] += 1
                    id = f"{id}-{copies[id] + 1}"
                result = _prompt_or_rejected(row, id, template, max_characters, seen.get(id), overlap)
                if isinstance(result, Prompt):
                    seen[id] = (row.file, row.line)
            if isinstance(result, Rejected):
                formatted.rejected[result.kind] += 1
            else:
                formatted.kept += 1
            yield result


def _prompt_or_rejected(
    row: Instruction,
    id: str,
    template: Template,
    max_characters: int,
    twin: tuple[str, int] | None,
    overlap: str | None,
) -> Prompt | Rejected:
    if twin:
        return Rejected(row.file, row.line, f"{DUPLICATE}: same as {twin[0]}:{twin[1]}", id)
    if overlap:
        return Rejected(row.file, row.line, f"{OVERLAP}: {overlap}", id)
    try:
        prompt = make_prompt(row, template, id)
    except NoFormError as error:
        return Rejected(row.file, row.line, f"template {template.name}: {error}", id)
    length = sum(len(segment.text) for segment in prompt.segments)
    if length > max_characters:
        return Rejected(row.file, row.line, f"too long: {length} characters", id)
    return prompt
