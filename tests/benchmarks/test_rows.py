"""The rows a benchmark runs on: if prompts were alike by accident, split would be timed on the generator's mistake."""

import re
from itertools import combinations

from tests.benchmarks.rows import Row, rows


def grams(row: Row) -> frozenset[str]:
    plain = re.sub(r"\W+", " ", f"{row['instruction']} {row['input']}".casefold()).strip()
    return frozenset(plain[start : start + 5] for start in range(len(plain) - 4))


def but_for_first_word(row: Row) -> tuple[str, str]:
    return row["instruction"].split(" ", 1)[1], row["input"]


def test_prompts_are_alike_only_where_meant() -> None:
    made = list(rows(500, seed=1))
    for (first, some), (second, others) in combinations([(row, grams(row)) for row in made], 2):
        if but_for_first_word(first) != but_for_first_word(second):
            assert len(some & others) / len(some | others) < 0.7, (first, second)


def test_a_smaller_file_is_the_beginning_of_a_larger_one() -> None:
    made = list(rows(5000, seed=1))
    assert list(rows(100, seed=1)) == made[:100] != list(rows(100, seed=2))


def test_rows_are_like_stanford_alpaca() -> None:
    made = list(rows(5000, seed=1))
    inputs = [row["input"] for row in made if row["input"]]
    assert 55 < sum(len(row["instruction"]) for row in made) / len(made) < 65
    assert 0.37 < len(inputs) / len(made) < 0.43
    assert 250 < sum(len(row["output"]) for row in made) / len(made) < 290
    repeated = len(made) - len({tuple(row.items()) for row in made})
    prompts_repeated = len(made) - len({but_for_first_word(row) for row in made})
    assert 0.005 < repeated / len(made) < 0.015
    assert 0.03 < prompts_repeated / len(made) < 0.05
