"""The check for leaks: it finds every pair that was planted, in either of its two ways, and it stops the stage."""

import random
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.instructions import leaks
from stages.instructions.deal import SPLITS, WITHHELD, Row
from stages.instructions.duplicates import Candidates, Shingles
from stages.instructions.leaks import find_leaks
from stages.instructions.partition import partition
from stages.instructions.split_files import Places, refuse_leaks
from stages.pipeline.errors import UserError
from tests.instructions.naive import near_pairs, prompts

NOTHING = Candidates(np.zeros((0, 2), dtype=np.int64), 0)

rows = st.lists(st.tuples(prompts, st.sampled_from([*SPLITS, WITHHELD])), max_size=25)
thresholds = st.integers(6, 20).map(lambda twentieth: twentieth / 20)


def leaked(texts: list[str], split: list[str], threshold: float) -> list[tuple[int, int]]:
    """Near-duplicates in different splits, by comparing every pair."""
    return sorted(
        (a, b) for a, b in near_pairs(texts, threshold) if split[a] != split[b] and WITHHELD not in (split[a], split[b])
    )


# derandomize, here and below: LSH may miss a pair right at the threshold once in a million (duplicates.MISSED)
@settings(max_examples=60, deadline=None, derandomize=True)
@given(rows, thresholds)
def test_every_leak_is_found_and_nothing_else(dealt: list[tuple[str, str]], threshold: float) -> None:
    texts, split = [text for text, _ in dealt], [name for _, name in dealt]
    found = find_leaks(Shingles(texts), split, threshold)
    assert found.pairs == leaked(texts, split, threshold)
    assert found.exact_rows == split.count("validation") + split.count("test")


@settings(max_examples=100, deadline=None)
@given(rows, thresholds)
def test_counting_shared_shingles_finds_every_leak_by_itself(dealt: list[tuple[str, str]], threshold: float) -> None:
    texts, split = [text for text, _ in dealt], [name for _, name in dealt]
    with patch.object(leaks, "find_candidates", return_value=NOTHING):
        found = find_leaks(Shingles(texts), split, threshold)
    assert found.pairs == leaked(texts, split, threshold)


def test_counting_agrees_with_the_similarity_where_a_product_would_round_up() -> None:
    """14 of 25 shingles are 0.56 exactly, and 0.56 * 25 is a little more than 14."""
    whole = "abcdefghijklmnopqrstuvwxyz012"
    with patch.object(leaks, "find_candidates", return_value=NOTHING):
        assert find_leaks(Shingles([whole[:18], whole]), ["train", "test"], 0.56).pairs == [(0, 1)]


def random_texts(count: int) -> list[str]:
    rng = random.Random(3)
    return ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz ", k=60)) for _ in range(count)]


def test_counting_goes_through_all_rows() -> None:
    texts = random_texts(9000)
    texts += [texts[at][:-9] for at in range(0, 9000, 100)]
    with patch.object(leaks, "find_candidates", return_value=NOTHING):
        found = find_leaks(Shingles(texts), ["train"] * 9000 + ["test"] * 90, 0.8)
    assert found.pairs == [(at, 9000 + at // 100) for at in range(0, 9000, 100)]


def test_beyond_the_rows_compared_exactly_leaks_are_found_by_lsh() -> None:
    texts = random_texts(1000)
    texts += [text[:-9] for text in texts]
    split = ["train"] * 1000 + ["validation", "test"] * 500
    with patch.object(leaks, "EXACT_ROWS", 10):
        found = find_leaks(Shingles(texts), split, 0.8)
    assert found.exact_rows == 10
    assert found.pairs == [(at, at + 1000) for at in range(1000)]


def test_a_leak_that_the_deal_did_not_see_stops_the_stage() -> None:
    """The deal is blinded; near-duplicates are then dealt one by one."""
    texts = [f"name a city in country number {number}" for number in range(40)]
    rows = [Row(f"{number:016x}", None, None) for number in range(40)]
    places = Places()
    places.extend(["cities.jsonl"] * 40, range(1, 41))
    with patch("stages.instructions.partition.find_candidates", return_value=NOTHING):
        dealt = partition(
            rows,
            texts,
            fractions=(0.5, 0.25, 0.25),
            salt="onset",
            near_duplicate_threshold=0.7,
            stratify=False,
            join=False,
        )
    assert dealt.leaks == leaked(texts, dealt.split, 0.7)
    first, second = dealt.leaks[0]
    pattern = rf"^prompts.parquet: {len(dealt.leaks)} pairs .* cities.jsonl:{first + 1} and cities.jsonl:{second + 1};"
    with pytest.raises(UserError, match=pattern):
        refuse_leaks(Path("prompts.parquet"), rows, dealt, places, fixed_too=False)
