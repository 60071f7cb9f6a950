"""The deal: rules that hold whatever is near whatever, on graphs made up by hypothesis."""

from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.instructions.deal import SPLITS, WITHHELD, Deal, Dealer, Row, deal
from tests.instructions.naive import components

FRACTIONS = (0.5, 0.25, 0.25)


class Case(NamedTuple):
    """Rows, which of them are near each other, and how they are dealt."""

    rows: list[Row]
    near: set[tuple[int, int]]
    """Pairs (earlier, later)."""
    salt: str
    stratify: bool
    join: bool

    def dealt(self, stop: int | None = None) -> Deal:
        """The rows before `stop`, dealt; every pair is a candidate, so `near` alone decides."""
        rows = self.rows[:stop]
        candidates = [(later, earlier) for later in range(len(rows)) for earlier in range(later)]
        return deal(
            rows,
            np.array(candidates, dtype=np.int64).reshape(-1, 2),
            self.are_near,
            Dealer(FRACTIONS, self.salt, stratify=self.stratify),
            join=self.join,
        )

    def are_near(self, a: int, b: int) -> bool:
        return (min(a, b), max(a, b)) in self.near


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Up to twelve rows, those with a fixed split first, each near some of the rows before it."""
    size = draw(st.integers(1, 12))
    fixed = draw(st.lists(st.sampled_from(SPLITS), max_size=size))
    rows = [
        Row(f"{at:016x}", draw(st.sampled_from(["a", "b", None])), fixed[at] if at < len(fixed) else None)
        for at in range(size)
    ]
    near = {
        (earlier, later) for later in range(1, size) for earlier in draw(st.sets(st.integers(0, later - 1), max_size=3))
    }
    return Case(rows, near, draw(st.text(max_size=3)), draw(st.booleans()), draw(st.booleans()))


@settings(max_examples=300, deadline=None)
@given(cases(), st.data())
def test_rows_added_at_the_end_move_no_earlier_row(case: Case, data: st.DataObject) -> None:
    case = case._replace(join=False)
    stop = data.draw(st.integers(0, len(case.rows)))
    together, alone = case.dealt(), case.dealt(stop)
    assert together.split[:stop] == alone.split
    assert {at: near for at, near in together.between.items() if at < stop} == alone.between


@settings(max_examples=300, deadline=None)
@given(cases())
def test_kept_rows_near_each_other_are_one_cluster_in_one_split(case: Case) -> None:
    dealt = case.dealt()
    kept = [at for at in range(len(case.rows)) if dealt.split[at] != WITHHELD]
    for component in components(kept, case.are_near):
        assert {dealt.cluster[at] for at in component} == {component[0]}
        assert {dealt.split[at] for at in component} <= set(SPLITS)
        assert len({dealt.split[at] for at in component}) == 1


@settings(max_examples=300, deadline=None)
@given(cases())
def test_a_row_is_withheld_only_between_splits(case: Case) -> None:
    dealt = case.dealt()
    assert sorted(dealt.between) == [at for at, name in enumerate(dealt.split) if name == WITHHELD]
    for at, others in dealt.between.items():
        assert dealt.cluster[at] == at
        assert all(other < at and case.are_near(other, at) and other not in dealt.between for other in others)
        splits = [dealt.split[other] for other in others]
        row = case.rows[at]
        assert len({*splits, row.fixed} - {None}) > 1
        if not case.join:
            assert len(splits) == len(set(splits))  # one row near it in each


@settings(max_examples=300, deadline=None)
@given(cases())
def test_joining_withholds_only_between_splits_that_the_data_fixes(case: Case) -> None:
    case = case._replace(join=True)
    dealt = case.dealt()
    for at in dealt.between:
        before = case.dealt(at)
        near = {before.cluster[row] for row in range(at) if case.are_near(row, at) and row not in before.between}
        assert len({case.rows[row].fixed for row in (*near, at)} - {None}) > 1
    unfixed = case._replace(rows=[row._replace(fixed=None) for row in case.rows])
    assert not unfixed.dealt().between


@settings(max_examples=300, deadline=None)
@given(cases())
def test_a_fixed_row_keeps_its_split_or_is_withheld_for_an_earlier_fixed_one(case: Case) -> None:
    dealt = case.dealt()
    for at, row in enumerate(case.rows):
        if row.fixed and dealt.split[at] == WITHHELD:
            assert any(case.rows[other].fixed != row.fixed for other in dealt.between[at])
            assert all(case.rows[other].fixed for other in dealt.between[at])
        elif row.fixed:
            assert dealt.split[at] == row.fixed


@settings(max_examples=300, deadline=None)
@given(cases())
def test_a_cluster_is_dealt_as_its_first_row_would_be_alone(case: Case) -> None:
    case = case._replace(stratify=False)
    dealt = case.dealt()
    for first, name in zip(dealt.cluster, dealt.split, strict=True):
        alone = Case([case.rows[first]], set(), case.salt, False, False).dealt().split
        assert name == WITHHELD or [name] == alone


def singletons(count: int, salt: str = "onset", *, stratify: bool = False, categories: int = 1) -> list[str]:
    """The splits of rows that are near no other, under FRACTIONS."""
    rows = [Row(f"{at:016x}", f"category {at % categories}", None) for at in range(count)]
    dealer = Dealer(FRACTIONS, salt, stratify=stratify)
    return deal(rows, np.zeros((0, 2), dtype=np.int64), lambda a, b: False, dealer, join=False).split


def test_shares_are_near_the_fractions() -> None:
    dealt = singletons(20_000)
    for name, fraction in zip(SPLITS, FRACTIONS, strict=True):
        assert dealt.count(name) / len(dealt) == pytest.approx(fraction, abs=0.012)  # four standard deviations


@pytest.mark.parametrize("stratify", [False, True])
def test_another_salt_deals_anew(stratify: bool) -> None:
    first, second = (singletons(20_000, salt, stratify=stratify, categories=400) for salt in ("onset", "other"))
    same = np.mean([a == b for a, b in zip(first, second, strict=True)])
    by_chance = sum(fraction**2 for fraction in FRACTIONS)
    assert same == pytest.approx(by_chance, abs=0.05)


@settings(max_examples=30, deadline=None)
@given(st.text(max_size=5), st.integers(1, 40))
def test_stratified_shares_hold_in_each_category_after_any_number_of_rows(salt: str, categories: int) -> None:
    dealt = np.array(singletons(3000, salt, stratify=True, categories=categories))
    for category in range(categories):
        ours = dealt[category::categories]
        for name, fraction in zip(SPLITS, FRACTIONS, strict=True):
            wanted = fraction * np.arange(1, len(ours) + 1)
            assert np.abs(np.cumsum(ours == name) - wanted).max() < 4
