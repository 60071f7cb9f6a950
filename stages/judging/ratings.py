"""Ratings of many models from battles of two: Bradley and Terry's (1952), in the way of Chatbot Arena.

As in FastChat (serve/monitor/rating_systems.py@2bdb2e0): maximum likelihood of P(first wins) =
1 / (1 + 10^((second - first) / 400)), a tie is half a win for each, intervals from a multinomial bootstrap over the
distinct results. What differs: a model that won, or lost, everything has no finite rating under the likelihood alone
(Ford 1957, doi:10.1080/00029890.1957.11989117), and FastChat gives the figure at which its optimizer stopped. Here
every rating carries the weak penalty that FastChat's own `fit_contextual_bt` has, and an end of an interval that no
battle sets is None.
"""

import math
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.sparse import csr_matrix, vstack
from scipy.sparse.csgraph import breadth_first_order, connected_components
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

from stages.pipeline.errors import UserError

SCALE = 400.0
"""Points for odds of 10 to 1."""
PENALTY = 0.5
"""Of the squared rating in units of SCALE: a prior with a standard deviation of 566 points (FastChat's `reg`)."""


class Battle(NamedTuple):
    """One vote between two players."""

    first: str
    second: str
    winner: float
    """1: the first; 0: the second; 0.5: a tie."""
    voter: str
    """Who said so."""


class Rating(NamedTuple):
    """One player's place."""

    player: str
    rating: float
    low: float | None
    high: float | None
    """Ends of the bootstrap interval. None: battles set no limit on this side, as above a player that won them all;
    the rating itself then rests on the penalty."""
    battles: int
    wins: int
    losses: int
    ties: int
    group: int
    """Players of two groups never met, not even through others: their ratings cannot be compared. 0: the anchor's."""


class _Results(NamedTuple):
    """Battles counted: `players` sorted, `pairs` (pairs, 2) their numbers, `counts` (pairs, 3) wins of the first,
    ties, wins of the second."""

    players: list[str]
    pairs: np.ndarray
    counts: np.ndarray


def rate(
    battles: Sequence[Battle],
    *,
    anchor: str | None = None,
    anchor_rating: float = 1000.0,
    penalty: float = PENALTY,
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> list[Rating]:
    """Ratings of all players, group by group, best first; the order of the battles does not matter.

    `anchor` is rated `anchor_rating`, in every bootstrap sample too; in groups without it the mean is.

    Raises:
        UserError: there is no battle, or the anchor is in none.
        ValueError: a player meets itself, or a winner is none of 1, 0.5 and 0.
    """
    if not battles:
        raise UserError("arena: no votes; a rating needs pairwise verdicts or blind votes")
    results = _count(battles)
    if anchor is not None and anchor not in results.players:
        raise UserError(f"arena: {anchor}: in no vote; rated are {', '.join(results.players)}")
    groups, has_low, has_high = _reach(results, anchor)
    at_anchor = None if anchor is None else results.players.index(anchor)
    fit = _Fit(results, penalty)
    draws = np.random.default_rng(seed).multinomial(len(battles), results.counts.ravel() / len(battles), resamples)
    with threadpool_limits(1):  # threads cost more than such small sums, many times more on a busy machine
        points = np.stack([fit(counts.reshape(-1, 3)) for counts in (results.counts, *draws)])
    ratings = _anchored(points, groups, at_anchor) + anchor_rating
    low, high = np.quantile(ratings[1:], [(1 - confidence) / 2, (1 + confidence) / 2], axis=0)
    found = [
        Rating(
            player,
            float(ratings[0, at]),
            float(low[at]) if has_low[at] else None,
            float(high[at]) if has_high[at] else None,
            *tally,
            group=int(groups[at]),
        )
        for at, (player, tally) in enumerate(zip(results.players, _tallies(results), strict=True))
    ]
    return sorted(found, key=lambda rating: (rating.group, -rating.rating, rating.player))


def _count(battles: Sequence[Battle]) -> _Results:
    counted: Counter[tuple[str, str, int]] = Counter()
    for first, second, winner, _ in battles:
        if first == second or winner not in (1.0, 0.5, 0.0):
            raise ValueError(f"no battle: {first} against {second}, winner {winner}")
        place = round(2 - 2 * winner)  # 0: the first won, 1: a tie, 2: the second won
        counted[(first, second, place) if first < second else (second, first, 2 - place)] += 1
    pairs = sorted({(first, second) for first, second, _ in counted})
    players = sorted({name for pair in pairs for name in pair})
    number = {name: at for at, name in enumerate(players)}
    return _Results(
        players,
        np.array([[number[first], number[second]] for first, second in pairs]),
        np.array([[counted[(*pair, place)] for place in range(3)] for pair in pairs]),
    )


class _Fit:
    """The likelihood's maximum for any counts of the same results, as a logistic regression on who met whom."""

    def __init__(self, results: _Results, penalty: float) -> None:
        shape = (len(results.pairs), len(results.players))
        signs = np.tile([math.log(10), -math.log(10)], shape[0])
        met = csr_matrix((signs, (np.repeat(np.arange(shape[0]), 2), results.pairs.ravel())), shape=shape)
        self._met = vstack([met, met], format="csr")
        self._won = np.repeat([1, 0], shape[0])
        self._model = LogisticRegression(C=1 / penalty, fit_intercept=False, tol=1e-7, max_iter=1000)

    def __call__(self, counts: np.ndarray) -> np.ndarray:
        """Ratings (players,) in points, their mean 0 in every group; counts (pairs, 3)."""
        ties = counts[:, 1] / 2
        weights = np.concatenate([counts[:, 0] + ties, counts[:, 2] + ties])
        self._model.fit(self._met, self._won, sample_weight=weights)
        points: np.ndarray = np.asarray(self._model.coef_[0]) * SCALE
        return points


def _anchored(points: np.ndarray, groups: np.ndarray, anchor: int | None) -> np.ndarray:
    """Points (samples, players) less the anchor's, or where that is not in the group, less the group's mean."""
    shifted = points.copy()
    for group in range(groups.max() + 1):
        own = groups == group
        zero = points[:, own].mean(axis=1) if anchor is None or not own[anchor] else points[:, anchor]
        shifted[:, own] -= zero[:, None]
    return shifted


def _reach(results: _Results, anchor: str | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Group of each player, and whether battles limit its rating from below and from above.

    A chain of wins and ties from a player down to the anchor limits it from below, one from the anchor down to it from
    above; where there is no anchor, every player of the group must be reached from every other (Ford's condition).
    """
    first, second = results.pairs.T
    beaten = np.concatenate([results.counts[:, 0] + results.counts[:, 1], results.counts[:, 2] + results.counts[:, 1]])
    size = len(results.players)
    edges = (np.concatenate([first, second]), np.concatenate([second, first]))
    graph = csr_matrix((beaten, edges), shape=(size, size))
    graph.eliminate_zeros()
    _, groups = connected_components(graph, directed=False)
    _, strong = connected_components(graph, directed=True, connection="strong")
    limited = np.array([len(set(strong[groups == group])) == 1 for group in groups])
    if anchor is None:
        return groups, limited, limited
    number = results.players.index(anchor)
    own = groups == groups[number]
    above, below = (breadth_first_order(way, number, return_predecessors=False) for way in (graph.T.tocsr(), graph))
    groups = np.where(own, 0, np.where(groups < groups[number], groups + 1, groups))
    has_low, has_high = (np.where(own, np.isin(np.arange(size), reached), limited) for reached in (above, below))
    return groups, has_low, has_high


def _tallies(results: _Results) -> list[tuple[int, int, int, int]]:
    """Battles, wins, losses and ties of each player."""
    tallies = np.zeros((len(results.players), 3), dtype=int)
    for (first, second), (won, tied, lost) in zip(results.pairs, results.counts, strict=True):
        tallies[first] += (won, lost, tied)
        tallies[second] += (lost, won, tied)
    return [(sum(tally), *tally) for tally in tallies.tolist()]
