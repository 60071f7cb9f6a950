"""Chatbot Arena's method on a prompt set: battles between models, a judge's or people's votes, Bradley-Terry ratings.

Questions and turns as in MT-bench (Zheng et al., arXiv 2306.05685; lm-sys/FastChat, llm_judge): every player answers
all turns, turn 2 after its own first answer, and the judge sees both answers of a question whole, in both orders;
verdicts that differ are a tie. Ratings are those of stages/judging/ratings.py, the base model's being 1000.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from stages.benchmarks.arena_files import (
    Answers,
    Fight,
    Question,
    read_opponents,
    read_questions,
    votes_on,
    write_answers,
    write_battles,
    write_page,
)
from stages.benchmarks.benchmark import (
    Benchmark,
    Figure,
    Found,
    Measurement,
    Message,
    Need,
    Row,
    Settings,
    Source,
    Subject,
)
from stages.judging.verdicts import Preference
from stages.model.endpoint import EndpointParams, Request
from stages.pipeline.errors import UserError
from stages.pipeline.progress import say

if TYPE_CHECKING:
    from stages.judging.ratings import Rating

MT_BENCH = ("coding", "extraction", "humanities", "math", "reasoning", "roleplay", "stem", "writing")
"""Categories of MT-bench, ten questions each, numbered 81 to 160."""

MAX_NEW_TOKENS = 1024
"""Of an answer: the default of FastChat's llm_judge/gen_model_answer.py."""

VERDICT_TOKENS = 512
BASE = "base"
"""The player whose rating is 1000."""

TASK = (
    "Above are a user's messages, and two assistants' answers to them, A and B; a REFERENCE, where there is one, is "
    "correct. Judge each assistant's answers as one conversation: does it do what the messages ask, correctly, and in "
    "the last message most of all? The order in which they are shown, and their length, count for nothing. Compare "
    "them in at most three sentences, and then write your verdict on a line of its own: [[A]] if assistant A is "
    "better, [[B]] if assistant B is better, [[C]] if neither is."
)
AGAIN = "Reply with [[A]], [[B]] or [[C]] and nothing else."


class Arena(Benchmark):
    """Battles between the subjects and other experiments."""

    name = "arena"
    title = "Chatbot Arena"
    about = "Bradley-Terry ratings from battles over MT-bench's questions; a judge in both orders, or people, vote"
    layout = (
        "question.jsonl of MT-bench (or any in that format); answers/<name>.jsonl: other experiments' answers; "
        "votes/*.json: what people saved from the review page"
    )
    source = Source(
        licence="Apache-2.0",
        where="https://github.com/lm-sys/FastChat/tree/main/fastchat/llm_judge/data/mt_bench",
        note="copy question.jsonl into the folder; with references, put `reference` into its rows",
    )
    needs: frozenset[Need] = frozenset({"judge or voters"})
    together = True

    def find(self, folder: Path) -> Found:
        """Questions by category; only MT-bench's own have a published number."""
        questions = read_questions(folder)
        counts = dict(Counter(question.category for question in questions))
        is_mt_bench = {question.id for question in questions} <= {str(id) for id in range(81, 161)}
        if is_mt_bench and counts.keys() <= set(MT_BENCH):
            return Found(counts, dict.fromkeys(MT_BENCH, 10))
        return Found(counts, dict.fromkeys(counts, 0))

    def measure(
        self, subjects: Sequence[Subject], folder: Path, wanted: Sequence[str], settings: Settings, into: Path
    ) -> Measurement:
        """Answer, write answers and page, and rate by what judge and people say of them."""
        questions = chosen(read_questions(folder), wanted, settings.limit)
        if not questions:
            raise UserError(
                f"{folder}: no question of {', '.join(wanted) or 'any category'}; put MT-bench's question.jsonl there"
            )
        players = {subject.name: answer_all(subject, questions) for subject in subjects}
        for name, answers in players.items():
            write_answers(into / f"answers-{name}.jsonl", questions, answers)
        players |= read_opponents(folder / "answers", questions, players)
        if len(players) < 2:
            raise UserError(f"{folder}: a battle needs two; put another experiment's answers into {folder}/answers")
        fights = []
        if len(subjects) > 1:
            pair = (subjects[0].name, subjects[1].name)
            page = write_page(into, questions, pair, players)
            votes, left = votes_on(folder / "votes", page)
            fights += [_vote(questions, pair, vote) for vote in votes]
            if left:
                say(f"  arena: {left} vote files in {folder}/votes are of other answers and do not count")
        if settings.judge is not None:
            fights += judge(questions, players, settings.judge)
        if not fights:
            say(
                "  arena: neither a judge nor votes so far: vote on arena/review.html beside the answers, put what "
                f"it saves into {folder}/votes and run again, or set benchmark.judge"
            )
            return Measurement([], _rows(questions, players, fights))
        write_battles(into / "battles.jsonl", fights)
        figures = _figures(fights, subjects, questions, self.find(folder), settings)
        return Measurement(figures, _rows(questions, players, fights))


def chosen(questions: Sequence[Question], wanted: Sequence[str], limit: int | None) -> list[Question]:
    """Questions of the wanted categories (all, if empty), at most `limit` of each."""
    seen: Counter[str] = Counter()
    kept = []
    for question in questions:
        seen[question.category] += 1
        if (not wanted or question.category in wanted) and (limit is None or seen[question.category] <= limit):
            kept.append(question)
    return kept


def answer_all(subject: Subject, questions: Sequence[Question]) -> Answers:
    """Answers to all turns of each question; each turn comes after the subject's own answers to those before it."""
    answers: Answers = {question.id: [] for question in questions}
    for turn in range(max(len(question.turns) for question in questions)):
        asked = [question for question in questions if len(question.turns) > turn]
        chats = [_chat(question.turns[: turn + 1], answers[question.id]) for question in asked]
        for question, samples in zip(asked, subject.answer(chats, max_new_tokens=MAX_NEW_TOKENS), strict=True):
            answers[question.id].append(samples[0])
    return answers


def _chat(turns: Sequence[str], answers: Sequence[str]) -> list[Message]:
    chat = []
    for turn, answer in zip(turns[:-1], answers, strict=True):
        chat += [{"role": "user", "content": turn}, {"role": "assistant", "content": answer}]
    return [*chat, {"role": "user", "content": turns[-1]}]


def _vote(questions: Sequence[Question], pair: tuple[str, str], vote: tuple[str, str, float]) -> Fight:
    reviewer, id, winner = vote
    question = next(question for question in questions if question.id == id)
    return Fight(question, *pair, reviewer, Preference(winner, winner), both_orders=False)


def judge(questions: Sequence[Question], players: Mapping[str, Answers], endpoint: EndpointParams) -> list[Fight]:
    """Every pair of players on every question that both answered; equal answers tie without a call.

    Raises:
        UserError: calls could not be made; what was answered is kept.
    """
    from stages.benchmarks.judged import ask
    from stages.judging.endpoint_judge import choice

    met = [
        (question, first, second)
        for first, second in combinations(players, 2)
        for question in questions
        if question.id in players[first] and question.id in players[second]
    ]
    different = [
        (question, players[first][question.id], players[second][question.id])
        for question, first, second in met
        if players[first][question.id] != players[second][question.id]
    ]
    requests = [
        Request(_messages(question, *shown), VERDICT_TOKENS, {"temperature": 0})
        for question, one, other in different
        for shown in ((one, other), (other, one))
    ]
    said = iter(ask(requests, endpoint, choice, label="battles, both orders", again=AGAIN))
    fights = []
    for question, first, second in met:
        preference = Preference(0.5, 0.5, "equal answers")
        if players[first][question.id] != players[second][question.id]:
            (forward, one), (backward, other) = next(said), next(said)
            words = f"{one}\n--- in the other order:\n{other}"
            preference = Preference(forward, None if backward is None else 1 - backward, words)
        fights.append(Fight(question, first, second, endpoint.model, preference, both_orders=True))
    return fights


def _messages(question: Question, a: Sequence[str], b: Sequence[str]) -> list[Message]:
    from stages.benchmarks.judged import Text, marked

    texts = []
    for title, turns in (("MESSAGE", question.turns), ("REFERENCE", question.reference), ("A", a), ("B", b)):
        name = f"ANSWER OF ASSISTANT {title} TO MESSAGE" if title in "AB" else title
        texts += [Text(f"{name} {number}", turn) for number, turn in enumerate(turns, start=1)]
    return marked(texts, TASK)


def _figures(
    fights: Sequence[Fight],
    subjects: Sequence[Subject],
    questions: Sequence[Question],
    found: Found,
    settings: Settings,
) -> list[Figure]:
    from stages.benchmarks.judged import figures_of

    sets = {question.category for question in questions}
    whole = list(found.published)
    about: dict[str, Any] = {
        "task": "arena",
        "run": len(sets),
        "out_of": len(whole),
        "shots": 0,
        "protocol": _protocol(fights),
        "scope": found.scope(whole, settings.limit) if len(sets) == len(whole) else "sample",
    }
    templates = {subject.name: subject.template for subject in subjects}
    players = sorted({name for fight in fights for name in (fight.first, fight.second)})
    models = {name: {"model": name, "template": templates.get(name, "none")} for name in players}
    figures = [_rated(rating, about | models[rating.player]) for rating in _ratings(fights, settings)]
    for name in players:
        figures += figures_of(_shares(name, fights), settings, **about, **models[name])
    return figures


def _ratings(fights: Sequence[Fight], settings: Settings) -> list["Rating"]:
    from stages.judging.ratings import Battle, rate

    battles = [
        Battle(fight.first, fight.second, fight.preference.winner, fight.voter)
        for fight in fights
        if fight.preference.winner is not None
    ]
    if not battles:
        return []
    rated = {name for battle in battles for name in (battle.first, battle.second)}
    return rate(
        battles,
        anchor=BASE if BASE in rated else None,
        confidence=settings.confidence,
        resamples=settings.resamples,
        seed=settings.seed,
    )


def _rated(rating: "Rating", about: dict[str, Any]) -> Figure:
    return Figure(
        metric="rating",
        value=rating.rating,
        low=rating.low,
        high=rating.high,
        n=rating.battles,
        library="onset",
        **about,
    )


def _shares(name: str, fights: Sequence[Fight]) -> dict[str, list[float]]:
    """Of one player: wins against the base model, verdicts that agree in both orders, and those that say nothing."""
    own = [fight for fight in fights if name in (fight.first, fight.second)]
    asked = [fight.preference for fight in own if fight.both_orders]
    readable = [one for one in asked if one.winner is not None]
    against = [_score(name, fight) for fight in own if BASE in (fight.first, fight.second) and name != BASE]
    values = {
        "win_rate": [score for score in against if score is not None],
        "position_consistency": [float(one.forward == one.backward) for one in readable],
        "invalid_fraction": [float(one.winner is None) for one in asked],
    }
    return {metric: numbers for metric, numbers in values.items() if numbers}


def _score(name: str, fight: Fight) -> float | None:
    """1, 0.5 or 0 for the player; None where the verdict is unreadable."""
    winner = fight.preference.winner
    return winner if winner is None or name == fight.first else 1 - winner


def _protocol(fights: Sequence[Fight]) -> str:
    judged = sorted({fight.voter for fight in fights if fight.both_orders})
    people = [fight for fight in fights if not fight.both_orders]
    voters = [f"{judge} in both orders, which must agree, else a tie" for judge in judged]
    if people:
        voters.append(f"{len(people)} blind votes of {len({fight.voter for fight in people})} people")
    return f"greedy answers to all turns, battles decided by {', and by '.join(voters)}; ratings against base = 1000"


def _rows(questions: Sequence[Question], players: Mapping[str, Answers], fights: Sequence[Fight]) -> list[Row]:
    """All answers; the score is the mean of the player's battles on that question."""
    scores: dict[tuple[str, str], list[float]] = defaultdict(list)
    for fight in fights:
        for name in (fight.first, fight.second):
            score = _score(name, fight)
            if score is not None:
                scores[name, fight.question.id].append(score)
    return [
        Row(
            model=name,
            task=f"arena/{question.category}",
            id=question.id,
            prompt="\n\n".join(question.turns),
            response="\n\n".join(answers[question.id]),
            target="\n\n".join(question.reference),
            score=fmean(scores[name, question.id]) if scores[name, question.id] else None,
        )
        for name, answers in players.items()
        for question in questions
        if question.id in answers
    ]


BENCHMARKS = (Arena(),)
