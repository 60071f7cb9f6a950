"""What is wrong with one shipped row, found by computing its answer; `checks.jsonl` says how."""

import calendar
import collections
import contextlib
import datetime
import io
import itertools
import json
import math
import re
import statistics
import string
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import Any

from stages.instructions.instruction import Instruction
from tests.shipped_data.quantities import convert, matches, numbers, roman, shows, words

NUMBERS = ("arithmetic", "dates_and_calendars", "numbers", "unit_conversion")
TEXTS = ("list_manipulation", "string_manipulation")
COMPUTED = (*NUMBERS, *TEXTS, "code")

NAMES: dict[str, Any] = {
    "Fraction": Fraction,
    "calendar": calendar,
    "collections": collections,
    "convert": convert,
    "date": datetime.date,
    "datetime": datetime,
    "itertools": itertools,
    "json": json,
    "math": math,
    "re": re,
    "roman": roman,
    "statistics": statistics,
    "string": string,
    "time": datetime.time,
    "timedelta": datetime.timedelta,
    "words": words,
}
"""What an expression in a check may use."""


def faults(row: Instruction, check: Sequence[str] | str | None) -> list[str]:
    """Every way in which `row` fails `check`; empty for a row that holds.

    - NUMBERS: expressions whose values the output must state; it states no other number but those of the prompt.
    - TEXTS: one expression whose value is the output, or stands in it.
    - code: expressions that are true once the output was run, or "stdout" where it is what the input prints.
    - json_extraction needs no check: the prompt holds every key and value.
    """
    if row.category == "json_extraction":
        return list(_unnamed(row))
    if not check:
        return ["has no check"]
    if row.category in NUMBERS:
        return list(_unstated([_value(expression) for expression in check], row))
    if row.category in TEXTS:
        return list(_untold(str(_value("".join(check))), row.response))
    return list(_unprinted(row)) if check == "stdout" else list(_failing(row.response, check))


def _value(expression: str) -> Any:
    # Names go in as globals: a lambda or a comprehension would not see locals.
    return eval(expression, dict(NAMES))


def _unstated(values: Sequence[Any], row: Instruction) -> Iterator[str]:
    for value in values:
        if not shows(row.response, value):
            yield f"computed {value}, which the output does not state"
    given = numbers(f"{row.instruction}\n{row.input}")
    given += [number for value in values if isinstance(value, str | datetime.date) for number in numbers(str(value))]
    computed = [value for value in values if isinstance(value, int | float | Fraction)]
    for number in numbers(row.response):
        if number not in given and not any(matches(number, value) for value in computed):
            yield f"states {number}, which is neither in the prompt nor computed"


def _untold(value: str, output: str) -> Iterator[str]:
    in_a_sentence = output[-1:] in ".!?" and re.search(rf"(?<!\w){re.escape(value)}(?!\w)", output)
    if output != value and not (value.strip() and in_a_sentence):
        yield f"computed {value!r}, the output is {output!r}"


def _unprinted(row: Instruction) -> Iterator[str]:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(row.input, {})
    if printed.getvalue().strip() != row.response:
        yield f"prints {printed.getvalue()!r}, the output is {row.response!r}"


def _failing(code: str, checks: Sequence[str]) -> Iterator[str]:
    namespace: dict[str, Any] = {}
    exec(code, namespace)
    for expression in checks:
        if not eval(expression, namespace):
            yield f"fails {expression}"


def _unnamed(row: Instruction) -> Iterator[str]:
    for leaf in _leaves(json.loads(row.response)):
        if isinstance(leaf, _Key):
            if not leaf or leaf.lower() not in row.instruction.lower():
                yield f"key {leaf!r} is not named in the instruction"
        elif isinstance(leaf, bool) or leaf is None:  # what the input says in other words, or leaves out
            continue
        elif isinstance(leaf, str):
            if not leaf or leaf.lower() not in row.input.lower():
                yield f"{leaf!r} does not stand in the input"
        elif not any(matches(number, leaf) for number in numbers(row.input)):
            yield f"{leaf} does not stand in the input"


class _Key(str):
    """A key, told apart from a value that is text."""

    __slots__ = ()


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield _Key(key)
            yield from _leaves(item)
    elif isinstance(value, list):
        for item in value:
            yield from _leaves(item)
    else:
        yield value
