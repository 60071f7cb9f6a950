"""What a judge says of answers, and how one asks it: the interface of all judges, and their words on disk."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import pyarrow as pa

from stages.judging.responses import Response
from stages.pipeline.files import read_about, read_parquet, write_parquet


class Verdict(NamedTuple):
    """A judge's word on one answer."""

    score: float | None
    """0 (wrong) to 100 (as good as the reference); None: the judge gave none that could be read."""
    signals: dict[str, float]
    """What it rests on, each 0 to 1, where the judge can tell."""
    reply: str = ""
    """The judge's own words."""


class Preference(NamedTuple):
    """A judge's word on two answers to one row, asked for in both orders.

    1: the first answer is the better one; 0: the second is; 0.5: neither; None: unreadable.
    """

    forward: float | None
    """With the first answer shown first."""
    backward: float | None
    """With the second answer shown first; on the same scale, so that a consistent judge says the same."""
    reply: str = ""

    @property
    def winner(self) -> float | None:
        """The verdict of both orders: they agree, or it is a tie (as in arXiv 2306.05685, section 3.4)."""
        if self.forward is None or self.backward is None:
            return None
        return self.forward if self.forward == self.backward else 0.5


class Usage(NamedTuple):
    """What verdicts cost, those from the store of calls included: the same for the same verdicts."""

    calls: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0


class Judge(Protocol):
    """Anything that gives verdicts."""

    name: str

    def grade(self, rows: Sequence[Response], answers: Sequence[str], *, repeat: int = 0) -> list[Verdict]:
        """A verdict on each answer to the row beside it; another `repeat` asks anew."""
        ...

    def compare(self, rows: Sequence[Response], first: Sequence[str], second: Sequence[str]) -> list[Preference]:
        """Which of two answers to each row is the better one."""
        ...

    def usage(self) -> Usage:
        """The cost of all verdicts given so far."""
        ...


SCHEMA = pa.schema(
    [
        pa.field("judge", pa.string(), nullable=False),
        pa.field("task", pa.string(), nullable=False),
        pa.field("id", pa.string(), nullable=False),
        pa.field("answer", pa.string(), nullable=False),
        pa.field("score", pa.float64()),
        pa.field("forward", pa.float64()),
        pa.field("backward", pa.float64()),
        pa.field("reply", pa.string(), nullable=False),
    ]
)


class Said(NamedTuple):
    """One row of data/verdicts.parquet."""

    judge: str
    task: str
    """grade: an answer by itself; pairwise: the fine-tuned model's against another."""
    id: str
    answer: str
    """response or base_response; in pairwise, whose answer the other one is: base, or an opponent's name."""
    score: float | None
    """grade: 0 to 100; pairwise: 1, 0.5 or 0 for the fine-tuned model; None: unreadable."""
    forward: float | None
    """pairwise: with the fine-tuned model's answer shown first."""
    backward: float | None
    reply: str


def write_verdicts(path: Path, verdicts: Sequence[Said], about: dict[str, Any]) -> None:
    """Write verdicts in the order given."""
    write_parquet(path, [row._asdict() for row in verdicts], SCHEMA, about=about)


def read_verdicts(path: Path) -> tuple[list[Said], dict[str, Any]]:
    """Read what `write_verdicts` wrote.

    Raises:
        UserError: the file is missing or damaged.
    """
    return [Said(**row) for row in read_parquet(path)], read_about(path)
