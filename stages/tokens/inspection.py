"""One example, token by token: what goes in, what is to come out, and where the loss is."""

from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jinja2 import Environment
from rich.console import Console
from rich.table import Table
from rich.text import Text

from stages.instructions.deal import SPLITS
from stages.instructions.prompts import iterate_prompts
from stages.pipeline.errors import UserError
from stages.pipeline.files import read_json, write_text
from stages.tokens.arrays import ROWS_AT_ONCE, TokenArrays, read_arrays
from stages.tokens.labels import IGNORE_INDEX
from stages.tokens.tokenizer import Tokenizer

PAGE = Path(__file__).with_name("inspection.html")
LOSS = "bold green"

CHARACTER = 4
"""Bytes of the longest character in UTF-8, and so the most tokens that one may be cut into."""

# What a terminal would act on, made visible: control pictures (Unicode, 2400 to 2421), and C1 controls by number.
_CONTROLS = {code: chr(0x2400 + code) for code in range(32)} | {0x7F: "\u2421"}
_CONTROLS |= {code: f"\\x{code:02x}" for code in range(0x80, 0xA0)}
_IN_TEXT = {code: shown for code, shown in _CONTROLS.items() if chr(code) not in "\n\t"}
_ALONE = _CONTROLS | {ord(" "): "\u00b7", ord("\n"): "\u21b5", ord("\t"): "\u21e5"}


class Step(NamedTuple):
    """One position of an example."""

    position: int
    """In the example, from 0."""
    token_id: int
    token: str
    label: int
    """Id of the token that the model is to predict here, IGNORE_INDEX where there is no loss."""
    target: str
    """That token; empty where there is no loss."""

    @property
    def has_loss(self) -> bool:
        """Whether the model is trained on this prediction."""
        return self.label != IGNORE_INDEX


class Piece(NamedTuple):
    """A token as a reader sees it in the text; several where they share a character."""

    text: str
    ids: list[int]
    position: int
    """Where the first of them is the target; -1: it is none, being the first of the example."""
    has_loss: bool


class Inspected(NamedTuple):
    """One example as it will be trained on."""

    id: str
    split: str
    number: int
    """Position among the split's examples, from 0."""
    row: int
    """Row of the arrays it lies in."""
    source: str
    """File and line it came from."""
    steps: list[Step]
    pieces: list[Piece]

    @property
    def title(self) -> str:
        """Which example it is."""
        return f"{self.split} example {self.number}, id {self.id}"

    @property
    def place(self) -> str:
        """Where it came from and where it lies."""
        return f"from {self.source}, in row {self.row}"

    @property
    def size(self) -> str:
        """How long it is and how much of it is trained."""
        supervised = sum(step.has_loss for step in self.steps)
        return f"{len(self.steps)} tokens, {supervised} with a loss ({supervised / len(self.steps):.0%})"


def inspect_example(wanted: str, split: str | None, tokens: Path, splits: Path, tokenizer: Tokenizer) -> Inspected:
    """The example with this id, in any split, or with this number in `split` (train unless it is named).

    Raises:
        UserError: there is no such example.
    """
    for name in SPLITS if split is None else (split,):
        ids: list[str] = read_json(tokens / name / "ids.json")
        if wanted in ids:
            return _read(ids.index(wanted), name, wanted, tokens, splits, tokenizer)
    name = split or SPLITS[0]
    ids = read_json(tokens / name / "ids.json")
    if wanted.isdecimal() and int(wanted) < len(ids):
        return _read(int(wanted), name, ids[int(wanted)], tokens, splits, tokenizer)
    raise UserError(
        f"{tokens}: no example '{wanted}'; give an id from {splits}, or a number from 0 to {len(ids) - 1} for {name}"
    )


def _read(number: int, split: str, id: str, tokens: Path, splits: Path, tokenizer: Tokenizer) -> Inspected:
    arrays = read_arrays(tokens / split)
    row, places = _find(arrays, number)
    inputs, labels = arrays.input_ids[row, places].tolist(), arrays.labels[row, places].tolist()
    steps = [
        Step(at, token_id, tokenizer.token(token_id), label, tokenizer.token(label) if label != IGNORE_INDEX else "")
        for at, (token_id, label) in enumerate(zip(inputs, labels, strict=True))
    ]
    whole = [inputs[0], *arrays.next_ids[row, places].tolist()]
    has_loss = [False, *(step.has_loss for step in steps)]
    pieces = list(_pieces(whole, has_loss, tokenizer))
    return Inspected(id, split, number, row, _source(splits / f"{split}.parquet", id), steps, pieces)


def _find(arrays: TokenArrays, number: int) -> tuple[int, np.ndarray]:
    """Row of an example and its places in it."""
    for start in range(0, len(arrays.example), ROWS_AT_ONCE):
        rows, places = np.nonzero(arrays.example[start : start + ROWS_AT_ONCE] == number)
        if len(rows):
            return start + int(rows[0]), places
    raise UserError(f"example {number} is in ids.json and not in the arrays; delete data/tokens and run `dvc repro`")


def _pieces(ids: list[int], has_loss: list[bool], tokenizer: Tokenizer) -> Iterator[Piece]:
    waiting: list[int] = []
    for at, token_id in enumerate(ids):
        waiting.append(token_id)
        turns = at + 1 == len(ids) or has_loss[at + 1] != has_loss[at]
        if turns or len(waiting) == CHARACTER or tokenizer.is_whole(waiting):
            yield Piece(tokenizer.continuation(waiting), waiting, at - len(waiting), has_loss[at])
            waiting = []


def _source(path: Path, id: str) -> str:
    for batch in iterate_prompts(path, ("id", "file", "line")):
        ids = batch.column("id").to_pylist()
        if id in ids:
            at = ids.index(id)
            return f"{batch.column('file')[at].as_py()}:{batch.column('line')[at].as_py()}"
    raise UserError(f"{path}: no prompt {id}, which the token arrays have; run `dvc repro`")


# ---- in the terminal


def show(example: Inspected, console: Console) -> None:
    """Print the example as text, with the loss in colour, and then its tokens one a line."""
    in_pipe = not console.is_terminal  # a person's lines are wrapped at words, others are left as they are
    for line in (Text(example.title, "bold"), Text(example.place), Text(example.size)):
        console.print(line, soft_wrap=in_pipe)
    learned = ("Coloured" if console.color_system else "With a target", LOSS)
    console.print(Text.assemble(learned, " is what the model learns to write; elsewhere the target id is -100."))
    console.print()
    console.print(_running(example.pieces), soft_wrap=in_pipe)
    console.print()
    console.print(_table(example.steps))


def _running(pieces: Iterable[Piece]) -> Text:
    running = Text()
    for has_loss, run in groupby(pieces, lambda piece: piece.has_loss):
        running.append("".join(piece.text for piece in run).translate(_IN_TEXT), LOSS if has_loss else "")
    return running


def _table(steps: Iterable[Step]) -> Table:
    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column("position", justify="right", style="dim")
    table.add_column("token", overflow="fold")
    table.add_column("id", justify="right")
    table.add_column("target", overflow="fold")
    table.add_column("target id", justify="right")
    for step in steps:
        style = LOSS if step.has_loss else "dim"
        target = Text(_alone(step.target), style), Text(str(step.label), style)
        table.add_row(str(step.position), Text(_alone(step.token)), str(step.token_id), *target)
    return table


def _alone(token: str) -> str:
    return token.translate(_ALONE)


# ---- as a page


def write_page(path: Path, example: Inspected) -> None:
    """Write the example as a self-contained page."""
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["alone"] = _alone
    environment.filters["lines"] = lambda text: text.translate(_IN_TEXT).split("\n")
    page = environment.from_string(PAGE.read_text(encoding="utf-8"))
    write_text(path, page.render(example=example))
