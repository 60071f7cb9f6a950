"""One example, token by token: what goes in, what is to come out, and where the loss is."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from jinja2 import Environment
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from stages.instructions.deal import SPLITS
from stages.instructions.prompts import iterate_prompts
from stages.pipeline.errors import UserError
from stages.pipeline.files import read_json, write_text
from stages.tokens.arrays import TokenArrays, read_arrays
from stages.tokens.labels import IGNORE_INDEX
from stages.tokens.tokenizer import Tokenizer

PAGE = Path(__file__).with_name("inspection.html")
LOSS = "bold green"

# Control pictures (Unicode, 2400 to 2421): what a terminal would act on, made visible.
_VISIBLE = {code: chr(0x2400 + code) for code in range(32)} | {0x7F: "\u2421", ord(" "): "\u00b7", ord("\n"): "\u21b5"}


class Step(NamedTuple):
    """One position of an example."""

    position: int
    """In the example, from 0."""
    token_id: int
    token: str
    target_id: int
    """Id of the next token, which the model is to predict."""
    target: str
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

    @property
    def title(self) -> str:
        """What it is and where it stands."""
        supervised = sum(step.has_loss for step in self.steps)
        return (
            f"{self.split} example {self.number} (id {self.id}, from {self.source}, in row {self.row}): "
            f"{len(self.steps)} tokens, {supervised} with a loss"
        )


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
    found = []
    for position, at in enumerate(places):
        token_id, target_id = int(arrays.input_ids[row, at]), int(arrays.next_ids[row, at])
        token, target = tokenizer.token(token_id), tokenizer.token(target_id)
        found.append(Step(position, token_id, token, target_id, target, bool(arrays.labels[row, at] != IGNORE_INDEX)))
    return Inspected(id, split, number, row, _source(splits / f"{split}.parquet", id), found)


def _find(arrays: TokenArrays, number: int) -> tuple[int, list[int]]:
    rows, places = np.nonzero(arrays.example == number)
    return int(rows[0]), places.tolist()


def _source(path: Path, id: str) -> str:
    for batch in iterate_prompts(path, ("id", "file", "line")):
        ids = batch.column("id").to_pylist()
        if id in ids:
            at = ids.index(id)
            return f"{batch.column('file')[at].as_py()}:{batch.column('line')[at].as_py()}"
    raise UserError(f"{path}: no prompt {id}, which the token arrays have; run `dvc repro`")


def _visible(token: str) -> str:
    return token.translate(_VISIBLE)


def show(example: Inspected, console: Console) -> None:
    """Print the example as text, loss in colour, and then its tokens one a line."""
    running = Text()
    for step in example.steps:
        # A token is coloured where it is a target, so what is coloured is what the model learns to write.
        running.append(step.target if step.position else step.token + step.target, LOSS if step.has_loss else "")
    table = Table("position", "token", "id", "target", "target id", "loss", box=None, header_style="bold")
    for step in example.steps:
        target = (Text(_visible(step.target), LOSS), str(step.target_id), Text("loss", LOSS)) if step.has_loss else ()
        table.add_row(str(step.position), Text(_visible(step.token)), str(step.token_id), *(target or ("-", "-", "")))
    console.print(Group(Text(example.title, "bold"), "", running, "", table))


def write_page(path: Path, example: Inspected) -> None:
    """Write the example as a self-contained page."""
    page = Environment(autoescape=True).from_string(PAGE.read_text(encoding="utf-8"))
    steps = [step._replace(token=_visible(step.token), target=_visible(step.target)) for step in example.steps]
    write_text(path, page.render(title=example.title, raw=example.steps, steps=steps))
