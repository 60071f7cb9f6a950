"""All experiments against each other: verdicts and votes of all of them into one rating."""

import hashlib
import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from stages.experiments.comparison_scores import SAME_SCORE
from stages.experiments.revisions import AbsentError, locate
from stages.judging.ratings import Battle, rate
from stages.judging.reviews import VOTES, Review
from stages.judging.verdicts import Said, read_verdicts
from stages.pipeline.errors import UserError
from stages.pipeline.files import read_parquet, sha256_of

BASE = "base"
IN_PROCESS = ("embedded",)
"""Judges whose scores of two experiments are a verdict between them: deterministic, and the same wherever they run."""

Answers = dict[str, tuple[str, ...]]
"""By row id: instruction, input, reference and answer."""


class Entry(NamedTuple):
    """An experiment that takes part."""

    name: str
    answers: Answers
    base_answers: Answers
    verdicts: list[Said]
    responses_sha256: str
    opponents: dict[str, Answers]
    """Answers of those it was compared with beside the base model, by name; empty: no longer to be had."""


class _Vote(NamedTuple):
    """What can be said once: two players (in the order of their names), a row, a voter."""

    first: str
    second: str
    id: str
    voter: str


def read_entry(place: str, into: Path) -> Entry:
    """Read an experiment (see `locate`).

    Raises:
        UserError: there is no such experiment, it was not judged, or its files are damaged.
    """
    responses = locate(place, "data/responses.parquet", into)
    verdicts = read_verdicts(locate(place, "data/verdicts.parquet", into))[0]
    opponents: dict[str, Answers] = {}
    for name in sorted({said.answer for said in verdicts if said.task == "pairwise"} - {BASE}):
        try:
            opponents[name] = _answers(locate(place, f"data/opponents/{name}.parquet", into), "response")
        except AbsentError:
            opponents[name] = {}
    return Entry(
        place,
        _answers(responses, "response"),
        _answers(responses, "base_response"),
        verdicts,
        sha256_of(responses),
        opponents,
    )


def read_entries(
    places: Sequence[str], into: Path, advance: Callable[[], object]
) -> tuple[list[Entry], dict[str, str]]:
    """Entries, and why which places were skipped."""
    entries, skipped = [], {}
    for number, place in enumerate(dict.fromkeys(places)):
        try:
            entries.append(read_entry(place, into / str(number)))
        except UserError as error:
            skipped[place] = " ".join(str(error).split())
        advance()
    return entries, skipped


def _answers(path: Path, column: str) -> Answers:
    try:
        return {
            row["id"]: (row["instruction"], row["input"], row["reference"], row[column]) for row in read_parquet(path)
        }
    except KeyError as error:
        raise UserError(f"{path}: has no column {error}; is it data/responses.parquet of this pipeline?") from None


# ---- who plays


class Players(NamedTuple):
    """Names under which answers are rated."""

    own: dict[str, str]
    """Of each experiment's answers, by its name."""
    base: dict[str, str]
    """Of the base model's answers, by the experiment's name."""
    opponents: dict[tuple[str, str], str]
    """Of an opponent's answers, by the experiment's and the opponent's name."""


def name_players(entries: Sequence[Entry]) -> Players:
    """The same answers are one player, all its names joined; where answers differ, one name is several players.

    The base model is `base` while its answers to the rows that experiments share are the same, else `base@<hash>`.
    """
    answers = [(entry.name, entry.answers) for entry in entries]
    answers += [(name, own) for entry in entries for name, own in entry.opponents.items() if own]
    names: dict[str, set[str]] = {}
    for name, own in answers:
        names.setdefault(_digest(own), set()).add(name)
    joined = {digest: " = ".join(sorted(own)) for digest, own in names.items()}
    several = {BASE} | {name for name, group in itertools.groupby(sorted(joined.values())) if len(list(group)) > 1}
    called = {digest: f"{name}@{digest}" if name in several else name for digest, name in joined.items()}
    own_names = {entry.name: called[_digest(entry.answers)] for entry in entries}
    opponents = {
        (entry.name, name): called[_digest(own)] if own else own_names.get(name, name)
        for entry in entries
        for name, own in entry.opponents.items()
    }
    return Players(own_names, _name_bases(entries), opponents)


def _name_bases(entries: Sequence[Entry]) -> dict[str, str]:
    groups: list[tuple[Answers, list[str]]] = []
    for entry in entries:
        for known, names in groups:
            common = known.keys() & entry.base_answers.keys()
            if common and all(known[id] == entry.base_answers[id] for id in common):
                known.update(entry.base_answers)
                names.append(entry.name)
                break
        else:
            groups.append((dict(entry.base_answers), [entry.name]))
    several = len(groups) > 1
    return {name: f"{BASE}@{_digest(known)}" if several else BASE for known, names in groups for name in names}


def _digest(answers: Answers) -> str:
    return hashlib.sha256(json.dumps(sorted(answers.items())).encode()).hexdigest()[:8]


# ---- who won


def gather(
    entries: Sequence[Entry],
    reviews: Sequence[Review],
    players: Players,
    *,
    judges: bool,
    order_of_scores: bool,
) -> tuple[list[Battle], list[str]]:
    """All battles, and what is left out and why.

    A judge's pairwise verdict is a battle (of both orders; see `Preference.winner`), so is a person's blind vote. With
    `order_of_scores` a judge in process also decides between any two answers to one row that it scored, where it gave
    no pairwise verdict. A vote that several entries hold, such as two experiments with the same answers, counts once.
    """
    cast: dict[_Vote, float] = {}
    left_out: list[str] = []
    if judges:
        for entry in entries:
            for vote, winner in _pairwise(entry, players):
                cast.setdefault(vote, winner)
        if order_of_scores:
            for vote, winner in _by_scores(entries, players, left_out):
                cast.setdefault(vote, winner)
    for vote, winner in _blind(entries, reviews, players, left_out):
        cast.setdefault(vote, winner)
    return [Battle(vote.first, vote.second, winner, vote.voter) for vote, winner in sorted(cast.items())], left_out


def _vote(first: str, second: str, id: str, voter: str, winner: float) -> Iterator[tuple[_Vote, float]]:
    """None where a player meets itself."""
    if first < second:
        yield _Vote(first, second, id, voter), winner
    elif second < first:
        yield _Vote(second, first, id, voter), 1 - winner


def _pairwise(entry: Entry, players: Players) -> Iterator[tuple[_Vote, float]]:
    for said in entry.verdicts:
        if said.task != "pairwise" or said.score is None:
            continue
        other = players.base[entry.name] if said.answer == BASE else players.opponents[entry.name, said.answer]
        yield from _vote(players.own[entry.name], other, said.id, f"judge:{said.judge}", said.score)


def _blind(
    entries: Sequence[Entry], reviews: Sequence[Review], players: Players, left_out: list[str]
) -> Iterator[tuple[_Vote, float]]:
    by_responses = {entry.responses_sha256: entry for entry in entries}
    for review in reviews:
        entry = by_responses.get(review.responses)
        if entry is None:
            if review.votes:
                left_out.append(
                    f"{review.reviewer}'s votes on responses {review.responses[:8]}: no experiment here has those"
                )
            continue
        for id, vote in review.votes.items():
            own, base = players.own[entry.name], players.base[entry.name]
            yield from _vote(own, base, id, f"person:{review.reviewer}", VOTES[vote])


Scores = Mapping[str, float]


def _by_scores(entries: Sequence[Entry], players: Players, left_out: list[str]) -> Iterator[tuple[_Vote, float]]:
    for judge in IN_PROCESS:
        scored = [
            (entry, _scores(entry, judge, "response"), _scores(entry, judge, "base_response")) for entry in entries
        ]
        for entry, own, base in scored:
            name, other = players.own[entry.name], players.base[entry.name]
            for id in own.keys() & base.keys():
                yield from _vote(name, other, id, f"judge:{judge}", _order(own[id], base[id]))
        for (entry, own, base), (other_entry, other_own, other_base) in itertools.combinations(scored, 2):
            if not own or not other_own:
                continue
            if not _same_judge(entry.base_answers, base, other_entry.base_answers, other_base):
                left_out.append(
                    f"scores of {entry.name} beside those of {other_entry.name}: no answer of the base model shows "
                    f"that {judge} is the same in both"
                )
                continue
            names = players.own[entry.name], players.own[other_entry.name]
            for id in own.keys() & other_own.keys():
                if entry.answers[id][:-1] == other_entry.answers[id][:-1]:
                    yield from _vote(*names, id, f"judge:{judge}", _order(own[id], other_own[id]))


def _scores(entry: Entry, judge: str, answer: str) -> Scores:
    return {
        said.id: said.score
        for said in entry.verdicts
        if (said.judge, said.task, said.answer) == (judge, "grade", answer)
        and said.score is not None
        and said.id in entry.answers
    }


def _order(score: float, other: float) -> float:
    return 1.0 if score > other else 0.5 if score == other else 0.0


def _same_judge(answers: Answers, scores: Scores, other_answers: Answers, other_scores: Scores) -> bool:
    """Does it give the same answers of the base model the same scores? False where there are none."""
    common = [id for id in scores.keys() & other_scores.keys() if answers[id] == other_answers[id]]
    return bool(common) and all(abs(scores[id] - other_scores[id]) <= SAME_SCORE for id in common)


# ---- what comes of it


def choose_anchor(wanted: str, players: Players, battles: Sequence[Battle]) -> str:
    """The player to be rated 1000: `wanted`; of several base models, for `base`, the one with most battles.

    Raises:
        UserError: it takes no part.
    """
    names = sorted({name for battle in battles for name in (battle.first, battle.second)})
    if wanted in names:
        return wanted
    met = [name for battle in battles for name in (battle.first, battle.second)]
    if wanted == BASE and (bases := sorted(set(players.base.values()) & set(names))):
        return max(bases, key=met.count)
    holders = [name for name in names if wanted in name.split(" = ")]
    if len(holders) == 1:
        return holders[0]
    raise UserError(f"--anchor {wanted}: in no vote; rated are {', '.join(names) or 'none'}")


def rate_entries(
    entries: Sequence[Entry],
    reviews: Sequence[Review],
    *,
    judges: bool,
    order_of_scores: bool,
    anchor: str,
    confidence: float,
    resamples: int,
    seed: int,
) -> dict[str, Any]:
    """Contents of metrics/arena.json: ratings best first, votes by voter, what was left out.

    The intervals take every vote for itself. Where one judge's order of scores decides between all experiments on the
    same rows, votes hang together, and the intervals are too narrow.

    Raises:
        UserError: there are no votes, or the anchor is in none.
    """
    players = name_players(entries)
    battles, left_out = gather(entries, reviews, players, judges=judges, order_of_scores=order_of_scores)
    if not battles:
        raise UserError("arena: no votes among these experiments; run `dvc repro` with a judge that compares pairwise")
    chosen = choose_anchor(anchor, players, battles)
    ratings = rate(battles, anchor=chosen, confidence=confidence, resamples=resamples, seed=seed)
    rated: dict[str, dict[str, Any]] = {}
    for rating in ratings:
        values = rating._asdict()
        name = values.pop("player")
        rated[name] = {key: round(value, 1) if isinstance(value, float) else value for key, value in values.items()}
    return {
        "anchor": chosen,
        "confidence": confidence,
        "resamples": resamples,
        "seed": seed,
        "votes": dict(sorted(Counter(battle.voter for battle in battles).items())),
        "players": rated,
        "left_out": left_out,
    }
