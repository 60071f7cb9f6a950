"""Answers known to be good and answers known to be bad, made from references: what a judge is tried on."""

import random
import re
from collections.abc import Sequence
from typing import NamedTuple

from stages.judging.responses import Response

GOOD = ("reference", "reworded")
BAD = ("other_row", "changed_fact", "truncated", "empty", "base_elsewhere")


class Known(NamedTuple):
    """An answer to `row` whose worth is known."""

    row: Response
    kind: str
    """One of GOOD or BAD."""
    answer: str


def known_answers(rows: Sequence[Response], limit: int, seed: int) -> list[Known]:
    """Good and corrupted answers to at most `limit` rows, chosen and made by `seed`.

    - reference: the wanted response itself; reworded: the same in another dress (lead-in, case, final stop).
    - other_row: the wanted response to another row, of the same category where there is one.
    - changed_fact: one number or one content word is another. truncated: the first half of the words. empty: nothing.
    - base_elsewhere: what the base model wrote to another row: fluent, in its own voice, and wrong.
    """
    dice = random.Random(seed)
    chosen = sorted(dice.sample(range(len(rows)), min(limit, len(rows))))
    vocabulary = sorted({word for row in rows for word in _content_words(row.reference)})
    known = []
    for at in chosen:
        row = rows[at]
        other = _other(rows, at, dice)
        made = {
            "reference": row.reference,
            "reworded": _reworded(row.reference, dice),
            "other_row": other.reference if other else None,
            "changed_fact": _changed_fact(row.reference, vocabulary, dice),
            "truncated": _truncated(row.reference),
            "empty": "",
            "base_elsewhere": other.base_response if other else None,
        }
        known += [Known(row, kind, answer) for kind, answer in made.items() if answer is not None]
    return known


def _other(rows: Sequence[Response], at: int, dice: random.Random) -> Response | None:
    """Another row with another reference, of the same category where there is one."""
    row = rows[at]
    others = [r for r in rows if r.reference != row.reference]
    alike = [r for r in others if r.category == row.category]
    return dice.choice(alike or others) if others else None


def _reworded(text: str, dice: random.Random) -> str:
    lead_in = dice.choice(("", "", "Answer: ", "The answer is: ", "Sure! "))
    body = text.removesuffix(".") if dice.random() < 0.5 else text
    return lead_in + (body[:1].lower() + body[1:] if lead_in and dice.random() < 0.5 else body)


def _content_words(text: str) -> list[str]:
    return re.findall(r"[^\W\d_]{4,}", text)


def _changed_fact(text: str, vocabulary: Sequence[str], dice: random.Random) -> str | None:
    """`text` with one number, or else one content word, replaced; None where it has neither."""
    numbers = list(re.finditer(r"\d+", text))
    if numbers:
        match = dice.choice(numbers)
        value = int(match.group())
        changed = str(value + dice.choice((1, 2, 10)) if value < 100 else value + dice.choice((-10, 10, 100)))
    else:
        words = list(re.finditer(r"[^\W\d_]{4,}", text))
        if not words:
            return None
        match = dice.choice(words)
        others = [word for word in vocabulary if word.lower() != match.group().lower()]
        if not others:
            return None
        changed = dice.choice(others)
    return text[: match.start()] + changed + text[match.end() :]


def _truncated(text: str) -> str | None:
    """The first half of the words; None for one word."""
    words = text.split(" ")
    return " ".join(words[: len(words) // 2]) if len(words) > 1 else None
