"""Alpaca-like rows in any number, to time the first stages with.

Words follow one another as in the shipped data (a bigram chain), and lengths are those of the 52,000 rows of Stanford
Alpaca. Some words are replaced by invented ones, names and numbers of a long tail, since real text never runs out of
new words: without them prompts would repeat, and a cache of words would look better than it is.
"""

import json
from collections import deque
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from tests.imports import ROOT

Row = dict[str, str]

SHIPPED = ROOT / "data/raw/instructions.jsonl"
BLOCK = 4096
"""Rows made together. Whole blocks are made, so that a smaller file is the beginning of a larger one."""

JUMPS = 0.2
"""Share of words that do not follow from the one before: the shipped data is too small to go on without."""
INVENTED = 0.05
"""Share of plain words that are replaced by an invented one."""
APART = 5
"""In prompts so many words have an invented one among them, whichever it replaces: it keeps prompts apart."""
TAIL = 5_000_000
"""Invented words there are; the one of rank r is drawn in proportion to 1 / r (Zipf)."""

REPEATED, NEARLY_REPEATED = 0.01, 0.03
"""Shares of rows that repeat a recent row, or the prompt of an earlier one but for its first word."""
WITH_INPUT = 0.4
LONGEST_OUTPUT = 2500


class Words(dict[int, str]):
    """Text of a word by its number; numbers beyond the vocabulary are invented words."""

    def __init__(self, vocabulary: Sequence[str]) -> None:
        super().__init__(enumerate(vocabulary))
        self._size = len(vocabulary)
        self._halves = [word for word in vocabulary if word.isalpha() and word.islower() and 3 <= len(word) <= 6]

    def __missing__(self, number: int) -> str:
        rank = number - self._size
        if rank % 8 == 0:
            return str(rank % 10_000)
        mixed = rank * 2654435761 % 2**32  # Knuth's multiplicative hash: neighbours in rank share no half
        halves = (self._halves[mixed % len(self._halves)], self._halves[mixed // 65536 % len(self._halves)])
        word = "".join(halves).capitalize() if rank % 8 == 1 else "".join(halves)
        if rank < 100_000:  # the frequent ones
            self[number] = word
        return word


class Chain:
    """A bigram chain over the words of `texts`, walked by many rows at once."""

    def __init__(self, texts: Sequence[str], numbers: dict[str, int]) -> None:
        words = [word for text in texts for word in text.split()]
        lengths = [len(text.split()) for text in texts]
        self._stream = np.array([numbers[word] for word in words])
        self._starts = np.cumsum([0, *lengths[:-1]])
        self._plain = np.array([word.isalpha() and word.islower() for word in words])
        self._vocabulary = len(numbers)
        # Positions of each word in the stream: any of them may be the one to go on from.
        self._places = np.argsort(self._stream, kind="stable")
        self._counts = np.bincount(self._stream, minlength=len(numbers))
        self._first = np.cumsum(self._counts) - self._counts

    def walk(self, lengths: np.ndarray, random: np.random.Generator, *, prompt: bool) -> list[list[int]]:
        """Numbers of the words of one text for each length."""
        order = np.argsort(-lengths, kind="stable")
        longest_first = lengths[order]
        numbers = np.empty((len(lengths), longest_first[0]), dtype=np.int64)
        at = random.choice(self._starts, len(lengths))
        for step in range(longest_first[0]):
            at = at[: np.searchsorted(-longest_first, -step)]  # the texts that are longer than this
            chance = random.random((4, len(at)))
            rank = (TAIL ** chance[0]).astype(np.int64)
            replaced = self._plain[at] & (chance[1] < INVENTED) | (prompt and step % APART == APART // 2)
            numbers[: len(at), step] = np.where(replaced, self._vocabulary + rank, self._stream[at])
            at = self._next(at, chance[2], chance[3])
        texts: list[list[int]] = [[]] * len(lengths)
        for row, position in enumerate(order.tolist()):
            texts[position] = numbers[row, : longest_first[row]].tolist()
        return texts

    def _next(self, at: np.ndarray, which: np.ndarray, jump: np.ndarray) -> np.ndarray:
        word = self._stream[at]
        same = self._places[self._first[word] + (which * self._counts[word]).astype(np.int64)]
        anywhere = (which * len(self._stream)).astype(np.int64)
        return np.where(jump < JUMPS, anywhere, (same + 1) % len(self._stream))


def rows(count: int, seed: int) -> Iterator[Row]:
    """The first `count` rows of this seed."""
    random = np.random.default_rng(seed)
    recent: deque[Row] = deque(maxlen=1000)
    earlier: list[Row] = []
    for position, fresh in enumerate(islice(_fresh_rows(random), count)):
        kind, which = random.random(2)
        row = fresh
        if recent and kind < REPEATED:
            row = recent[int(which * len(recent))]
        elif earlier and kind < REPEATED + NEARLY_REPEATED:
            twin = earlier[int(which * len(earlier))]
            first = fresh["instruction"].split()[0]
            rest = twin["instruction"].split()[1:]
            row = fresh | {"instruction": " ".join([first, *rest]), "input": twin["input"]}
        elif position % 8 == 0:
            earlier.append(fresh)
        recent.append(row)
        yield row


def _fresh_rows(random: np.random.Generator) -> Iterator[Row]:
    """Rows without end, none like another."""
    shipped = [json.loads(line) for line in SHIPPED.read_text(encoding="utf-8").splitlines()]
    texts = {
        name: [row[name] for row in shipped if _is_prose(row[name])] for name in ("instruction", "input", "output")
    }
    vocabulary = sorted({word for some in texts.values() for text in some for word in text.split()})
    numbers = {word: number for number, word in enumerate(vocabulary)}
    words = Words(vocabulary)
    instructions, inputs, outputs = (Chain(some, numbers) for some in texts.values())
    categories = sorted({row["category"] for row in shipped})
    while True:
        instruction = instructions.walk(_lengths(9.2, 0.4, 6, 40, random), random, prompt=True)
        input_length = _lengths(10.2, 0.5, 3, 60, random) * (random.random(BLOCK) < WITH_INPUT)
        input_text = inputs.walk(input_length, random, prompt=True)
        output = outputs.walk(_lengths(46.5, 0.9, 1, 420, random), random, prompt=False)
        category = random.integers(len(categories), size=BLOCK).tolist()
        for number in range(BLOCK):
            yield {
                "instruction": _sentence(instruction[number], words),
                "input": _sentence(input_text[number], words),
                "output": _sentence(output[number], words)[:LONGEST_OUTPUT].rstrip(),
                "category": categories[category[number]],
            }


def _is_prose(text: str) -> bool:
    """Whether most of it is letters: the shipped data has more numbers, lists and code than Stanford's."""
    return sum(map(str.isalpha, text)) > 0.75 * len(text)


def _lengths(mean: float, sigma: float, least: int, most: int, random: np.random.Generator) -> np.ndarray:
    """Log-normal lengths in words, for one block."""
    lengths = random.lognormal(np.log(mean) - sigma**2 / 2, sigma, BLOCK)
    return np.clip(np.rint(lengths), least, most).astype(np.int64)


def _sentence(numbers: Sequence[int], words: Words) -> str:
    text = " ".join([words[number] for number in numbers])
    return text if text[-1:] in ("", ".", "?", "!") else f"{text.rstrip(',:;')}."


def main(
    count: Annotated[int, typer.Argument(min=1, help="How many rows.")],
    path: Annotated[Path, typer.Argument(help="Written: a .jsonl file.")],
    seed: Annotated[int, typer.Option(help="Another one gives other rows.")] = 1,
) -> None:
    """Write Alpaca-like rows."""
    with path.open("w", encoding="utf-8") as file:
        for row in rows(count, seed):
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    typer.run(main)
