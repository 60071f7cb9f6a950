"""The points of a sweep: which parameters take which values, and what the experiment at each is called."""

import difflib
import itertools
import random
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import OverrideType
from hydra.errors import HydraException

from stages.pipeline.changes import Origin, changed_params, flat
from stages.pipeline.errors import UserError

Params = Mapping[str, Any]
"""By dotted name, as in `finetune.learning_rate`."""

DEFAULT = (
    ("finetune.method=full", "finetune.learning_rate=1e-4,2e-4", "finetune.epochs=2,4"),
    ("finetune.method=full", "collate.mask_instruction=true,false"),
    ("finetune.method=lora", "finetune.learning_rate=1e-3", "finetune.lora_rank=8,32"),
)
"""Seven experiments for the default model; what a grid does not name is as in params.yaml."""

SHORT = {"learning_rate": "lr", "mask_instruction": "mask", "lora_rank": "rank"}
LONGEST_NAME = 80


class Point(NamedTuple):
    """One experiment that is wanted."""

    name: str
    values: dict[str, str]
    """What is set, as text, by dotted name."""
    params: dict[str, Any]
    """All parameters it runs with."""


def points_of(grids: Sequence[Sequence[str]], params: Params) -> list[Point]:
    """Every combination of each grid's values, in their order; of those that come to the same parameters the first.

    A grid is a list of `name=v1,v2`, in the grammar that `dvc exp run --queue -S` has from Hydra (also `range(1,5)`).

    Raises:
        UserError: that cannot be read, or there is no such parameter.
    """
    wanted: list[dict[str, str]] = []
    for grid in grids:
        axes = [_axis(text, params) for text in grid]
        names = [name for name, _ in axes]
        for name in names:
            if names.count(name) > 1:
                raise UserError(f"{name}: given twice; all its values go into one -S, as in {name}=1,2")
        combinations = itertools.product(*(values for _, values in axes))
        wanted += [dict(zip(names, values, strict=True)) for values in combinations]
    named = {name for values in wanted for name in values}
    points: list[Point] = []
    for values in wanted:
        point = Point(_name(values, named), values, _set(params, values))
        if not any(same_params(point.params, other.params) for other in points):
            points.append(point)
    return points


def _axis(text: str, params: Params) -> tuple[str, list[str]]:
    try:
        override = OverridesParser.create().parse_override(text)
        if override.type != OverrideType.CHANGE:
            raise HydraException("a sweep sets parameters that are there")
        if override.is_sweep_override():
            values = [str(value) for value in override.sweep_string_iterator()]
        else:
            values = [override.get_value_element_as_str()]
    except HydraException:
        raise UserError(f"-S {text}: cannot be read; write NAME=V1,V2, as in finetune.epochs=2,4") from None
    name = override.key_or_group
    if not any(known == name or known.startswith(f"{name}.") for known in params):
        close = difflib.get_close_matches(name, params, n=1)
        hint = f"did you mean {close[0]}?" if close else "params.yaml has them all"
        raise UserError(f"-S {text}: there is no parameter {name}; {hint}")
    return name, values


def _set(params: Params, values: Mapping[str, str]) -> dict[str, Any]:
    kept = {
        name: value for name, value in params.items() if not f"{name}.".startswith(tuple(f"{own}." for own in values))
    }
    return kept | flat({name: yaml.safe_load(text) for name, text in values.items()})


def same_params(one: Params, other: Params) -> bool:
    """Whether all parameters are equal; numbers as numbers."""
    return not changed_params(Origin(dict(one), {}), Origin(dict(other), {}))


def short_name(name: str, among: set[str]) -> str:
    """The last part of a parameter's name, or all of it where that would not tell it from another's.

    >>> short_name("finetune.learning_rate", {"finetune.learning_rate", "finetune.seed"})
    'lr'
    """
    last = name.rsplit(".", 1)[-1]
    alone = sum(other.rsplit(".", 1)[-1] == last for other in among) <= 1
    return SHORT.get(last, last) if alone else name


def _name(values: Mapping[str, str], named: set[str]) -> str:
    """As in `sweep-method-lora-lr0.001-rank8`: what git takes for a name of a branch, too."""
    words = ["sweep"]
    for name, value in values.items():
        words.append(f"{short_name(name, named)}{'' if value[:1].isdigit() else '-'}{value.lower()}")
    text = re.sub(r"[^\w.+]+", "-", "-".join(words), flags=re.ASCII)
    return re.sub(r"\.{2,}", ".", text)[:LONGEST_NAME].strip("-.").removesuffix(".lock")


def unique(name: str, taken: set[str]) -> str:
    """The name, or with the first number behind it that makes it one of its own.

    >>> unique("sweep-lr0.1", {"sweep-lr0.1", "sweep-lr0.1-2"})
    'sweep-lr0.1-3'
    """
    candidates = itertools.chain([name], (f"{name}-{number}" for number in itertools.count(2)))
    return next(candidate for candidate in candidates if candidate not in taken)


def sample(points: Sequence[Point], count: int, seed: int) -> list[Point]:
    """So many points drawn at random, in the order they had."""
    chosen = sorted(random.Random(seed).sample(range(len(points)), min(count, len(points))))
    return [points[at] for at in chosen]
