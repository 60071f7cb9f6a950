"""Files of the arena: questions and other experiments' answers, the page on which people vote, and their votes."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from stages.instructions.raw_files import read_values
from stages.judging.responses import Response, write_responses
from stages.judging.reviews import VOTES, read_reviews
from stages.judging.verdicts import Preference
from stages.pipeline.errors import UserError
from stages.pipeline.files import sha256_of, write_jsonl

Answers = dict[str, list[str]]
"""A player's answer to each turn, by the question's id."""


class Question(NamedTuple):
    """One question of some turns."""

    id: str
    category: str
    turns: list[str]
    reference: list[str]
    """Correct answers to the turns, where there are any."""


class Fight(NamedTuple):
    """Two players on one question, and what was said of them."""

    question: Question
    first: str
    second: str
    voter: str
    preference: Preference
    """A person's has the same word in both orders."""
    both_orders: bool
    """False: a person's."""


class Page(NamedTuple):
    """What people vote on."""

    responses_sha256: str
    ids: list[str]


def read_questions(folder: Path) -> list[Question]:
    """Questions in MT-bench's format; none where there is no file.

    Raises:
        UserError: the file is of another format.
    """
    path = folder / "question.jsonl"
    if not path.exists():
        return []
    questions = []
    for line, value, broken in read_values(path):
        turns = _texts(value, "turns")
        if broken or not turns or not isinstance(value.get("question_id"), int | str):
            problem = broken or "a row needs `question_id` and `turns`, a list of texts"
            raise UserError(f"{path}:{line}: {problem}; take it as in MT-bench's question.jsonl")
        category = str(value.get("category") or "uncategorised")
        questions.append(Question(str(value["question_id"]), category, turns, _texts(value, "reference")))
    if len({question.id for question in questions}) < max(1, len(questions)):
        raise UserError(f"{path}: holds no question, or two with one question_id; mend it")
    return questions


def _texts(value: Any, key: str) -> list[str]:
    found = value.get(key) if isinstance(value, dict) else None
    return list(found) if isinstance(found, list) and all(isinstance(text, str) for text in found) else []


def write_answers(path: Path, questions: Sequence[Question], answers: Answers) -> None:
    """As `read_opponents` takes them in another experiment."""
    write_jsonl(path, ({"question_id": question.id, "answers": answers[question.id]} for question in questions))


def read_opponents(folder: Path, questions: Sequence[Question], taken: Mapping[str, Answers]) -> dict[str, Answers]:
    """Answers of other experiments by the names of their files; also FastChat's own, with `choices` and their `turns`.

    Raises:
        UserError: a file is of another format, has a subject's name, or answers none of the questions.
    """
    turns = {question.id: len(question.turns) for question in questions}
    found = {}
    for path in sorted(folder.glob("*.jsonl")):
        if path.stem in taken:
            raise UserError(f"{path}: has the name of a model that is measured; rename the file")
        answers: Answers = {}
        for line, value, broken in read_values(path):
            given = _texts(value, "answers")
            if not given and isinstance(value, dict) and isinstance(value.get("choices"), list) and value["choices"]:
                given = _texts(value["choices"][0], "turns")
            if broken or not given or not isinstance(value.get("question_id"), int | str):
                problem = broken or "a row needs `question_id` and `answers`, a list of texts"
                raise UserError(f"{path}:{line}: {problem}; take an answers-<model>.jsonl that this benchmark wrote")
            id = str(value["question_id"])
            if turns.get(id) == len(given):
                answers[id] = given
        if not answers:
            raise UserError(f"{path}: answers none of the questions in all their turns; remove it")
        found[path.stem] = answers
    return found


def write_page(
    into: Path, questions: Sequence[Question], pair: tuple[str, str], players: Mapping[str, Answers]
) -> Page:
    """Write review.html, where people vote blind between two players, and responses.parquet, which it shows."""
    from stages.judging.review import write_review
    from stages.judging.summary import Scored

    first, second = (players[name] for name in pair)
    rows = [
        Response(
            id=question.id,
            category=question.category,
            instruction=_joined("Message", question.turns),
            input="",
            reference=_joined("Reference", question.reference),
            response=_joined("Answer", first[question.id]),
            finish_reason="stop",
            base_response=_joined("Answer", second[question.id]),
            base_finish_reason="stop",
        )
        for question in questions
    ]
    path = into / "responses.parquet"
    write_responses(path, rows, {"models": list(pair)})
    digest = sha256_of(path)
    # Nothing was scored: the page shows a figure only where there is one.
    unscored = [Scored._make([row.id, row.category, *[None] * (len(Scored._fields) - 2)]) for row in rows]
    write_review(into / "review.html", rows, unscored, {"judge_reliable": True}, judges={}, responses_sha256=digest)
    return Page(digest, [row.id for row in rows])


def _joined(title: str, turns: Sequence[str]) -> str:
    if len(turns) < 2:
        return "".join(turns)
    return "\n\n".join(f"[{title} {number}]\n{turn}" for number, turn in enumerate(turns, start=1))


def votes_on(folder: Path, page: Page) -> tuple[list[tuple[str, str, float]], int]:
    """Reviewer, question and winner (1: the first of the pair) of each vote; and how many files are of other answers.

    Raises:
        UserError: a file is not what the page saves.
    """
    reviews = read_reviews(folder).values()
    own = [review for review in reviews if review.responses == page.responses_sha256]
    votes = [
        (review.reviewer, id, VOTES[vote])
        for review in own
        for id, vote in sorted(review.votes.items())
        if id in page.ids
    ]
    return votes, len(reviews) - len(own)


def write_battles(path: Path, fights: Sequence[Fight]) -> None:
    """Every vote, with the judge's words."""
    write_jsonl(
        path,
        (
            {
                "question_id": fight.question.id,
                "first": fight.first,
                "second": fight.second,
                "voter": fight.voter,
                "winner": fight.preference.winner,
                "forward": fight.preference.forward,
                "backward": fight.preference.backward,
                "reply": fight.preference.reply,
            }
            for fight in fights
        ),
    )
