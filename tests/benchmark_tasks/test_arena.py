import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stages.benchmarks.arena import Arena
from stages.benchmarks.benchmark import Figure, Measurement, Settings
from stages.model.endpoint import EndpointParams
from stages.pipeline.errors import UserError
from stages.pipeline.files import sha256_of
from tests.benchmark_tasks.oracles import OracleSubject
from tests.judging.servers import Act, Body, Script, StandIn, say, serving

Answer = Callable[[Any], str]


@pytest.fixture(autouse=True)
def own_calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))


def data(folder: Path, count: int = 12) -> Path:
    folder.mkdir()
    rows = [
        {"question_id": 500 + at, "category": ["math", "own"][at % 2], "turns": [f"Question {at}?", f"And then {at}?"]}
        for at in range(count)
    ]
    rows[0]["reference"] = ["First.", "Then."]
    write(folder / "question.jsonl", rows)
    return folder


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def subject(name: str, answer: Answer) -> OracleSubject:
    made = OracleSubject(reply=answer)
    made.name = name
    return made


def pair(own: str = "gold", base: str = "plain") -> list[OracleSubject]:
    def told(word: str) -> Answer:
        return lambda chat: f"{word}: {chat[-1]['content']}"

    return [subject("fine-tuned", told(own)), subject("base", told(base))]


def conversations(body: Body) -> tuple[str, str]:
    text = str(body["messages"][-1]["content"])
    a, b = (
        "\n".join(
            re.findall(rf"BEGIN ANSWER OF ASSISTANT {name} TO MESSAGE \d \w+-+\n(.*?)\n-----END", text, re.DOTALL)
        )
        for name in "AB"
    )
    return a, b


def likes_gold(body: Body, _: int) -> Act:
    a, b = ("gold" in conversation for conversation in conversations(body))
    return say("It is as it is.\n[[C]]" if a == b else "[[A]]" if a else "[[B]]")


def run(
    folder: Path, script: Script, subjects: list[OracleSubject], *wanted: str, limit: int | None = None
) -> tuple[Measurement, StandIn]:
    with serving(script) as server:
        judge = EndpointParams(base_url=server.url, model="tiny", api_key_env=None, retries=0)
        settings = Settings(judge=judge, resamples=100, limit=limit)
        return Arena().measure(subjects, folder, list(wanted), settings, folder.parent / "rows"), server


def figure(measured: Measurement, metric: str, model: str = "fine-tuned") -> Figure:
    (found,) = (one for one in measured.figures if (one.metric, one.model) == (metric, model))
    return found


def test_gold_wins_every_battle(tmp_path: Path) -> None:
    measured, server = run(data(tmp_path / "data"), likes_gold, pair())
    assert figure(measured, "win_rate").value == 1.0
    assert figure(measured, "position_consistency").value == 1.0
    assert figure(measured, "rating", "base").value == 1000.0
    own = figure(measured, "rating")
    assert own.value > 1200
    assert own.high is None, "nobody has beaten it: nothing limits its rating from above"
    assert (own.n, own.run, own.out_of, own.scope) == (12, 2, 2, "sample")
    assert "tiny in both orders" in own.protocol
    assert len(server.chats) == 24
    assert {row.score for row in measured.rows if row.model == "fine-tuned"} == {1.0}
    assert {row.score for row in measured.rows if row.model == "base"} == {0.0}


def test_equals_are_rated_alike(tmp_path: Path) -> None:
    measured, _ = run(data(tmp_path / "data"), likes_gold, pair("gold one", "gold two"))
    assert figure(measured, "rating").value == pytest.approx(1000)
    assert figure(measured, "win_rate").value == 0.5


def test_a_judge_that_goes_by_place_makes_ties(tmp_path: Path) -> None:
    measured, _ = run(data(tmp_path / "data"), lambda body, _: say("[[A]]"), pair())
    assert figure(measured, "win_rate").value == 0.5
    assert figure(measured, "position_consistency").value == 0.0
    assert figure(measured, "rating").value == pytest.approx(1000)


def test_both_turns_are_answered_in_turn_and_shown_in_both_orders(tmp_path: Path) -> None:
    subjects = pair()
    _, server = run(data(tmp_path / "data", 1), likes_gold, subjects)
    assert subjects[0].asked == [
        [{"role": "user", "content": "Question 0?"}],
        [
            {"role": "user", "content": "Question 0?"},
            {"role": "assistant", "content": "gold: Question 0?"},
            {"role": "user", "content": "And then 0?"},
        ],
    ]
    own, base = "gold: Question 0?\ngold: And then 0?", "plain: Question 0?\nplain: And then 0?"
    assert sorted(map(conversations, server.chats)) == [(own, base), (base, own)]
    text = server.chats[0]["messages"][-1]["content"]
    assert all(f"-----BEGIN {title} " in text for title in ("MESSAGE 1", "MESSAGE 2", "REFERENCE 1", "REFERENCE 2"))


def test_unreadable_verdicts_are_counted_and_are_no_battles(tmp_path: Path) -> None:
    def script(body: Body, number: int) -> Act:
        return say("I cannot say.") if "Question 3?" in str(body["messages"]) else likes_gold(body, number)

    measured, server = run(data(tmp_path / "data", 4), script, pair())
    assert figure(measured, "invalid_fraction").value == 0.25
    assert figure(measured, "rating").n == figure(measured, "win_rate").n == 3
    assert len(server.chats) == 8 + 2
    nothing, _ = run(tmp_path / "data", lambda body, _: say("No."), pair())
    assert {one.metric for one in nothing.figures} == {"invalid_fraction"}


def test_other_experiments_join_with_the_answers_they_wrote(tmp_path: Path) -> None:
    folder = data(tmp_path / "data", 6)
    run(folder, likes_gold, pair())
    written = tmp_path / "rows/answers-fine-tuned.jsonl"
    first = json.loads(written.read_text().splitlines()[0])
    assert first == {"question_id": "500", "answers": ["gold: Question 0?", "gold: And then 0?"]}
    (folder / "answers").mkdir()
    written.rename(folder / "answers/last-week.jsonl")
    fastchat = [{"question_id": 500 + at, "choices": [{"index": 0, "turns": ["x", "y"]}]} for at in range(3)]
    write(folder / "answers/other.jsonl", fastchat)
    measured, _ = run(folder, likes_gold, pair("golden"))
    ratings = {one.model: one.value for one in measured.figures if one.metric == "rating"}
    assert ratings.keys() == {"fine-tuned", "base", "last-week", "other"}
    assert ratings["fine-tuned"] == pytest.approx(ratings["last-week"], abs=30)
    assert min(ratings["last-week"], ratings["fine-tuned"]) > ratings["base"] + 100
    assert figure(measured, "win_rate", "last-week").value == 1.0
    assert sum(row.model == "other" for row in measured.rows) == 3


def test_people_vote_on_the_page_and_the_next_run_counts_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, into = data(tmp_path / "data", 4), tmp_path / "rows"
    first = Arena().measure(pair(), folder, [], Settings(), into)
    assert first.figures == []
    assert {row.score for row in first.rows} == {None}
    assert "neither a judge nor votes so far: vote on arena/review.html" in capsys.readouterr().err
    assert (into / "answers-base.jsonl").exists()
    page = (into / "review.html").read_text()
    assert "[Answer 2]\\ngold: And then 1?" in page
    assert '"exact_match": null' in page, "no figure is shown of what nobody has scored"
    votes = {"500": "response", "501": "response", "502": "tie", "503": "base_response"}
    review = {
        "format": "onset-review-1",
        "responses": sha256_of(into / "responses.parquet"),
        "reviewer": "Ada",
        "scores": {},
        "votes": votes,
    }
    (folder / "votes").mkdir()
    (folder / "votes/ada.json").write_text(json.dumps(review))
    (folder / "votes/old.json").write_text(json.dumps({**review, "responses": "0" * 64}))
    measured = Arena().measure(pair(), folder, [], Settings(resamples=100), into)
    assert figure(measured, "win_rate").value == 0.625
    assert "4 blind votes of 1 people" in figure(measured, "rating").protocol
    both, _ = run(folder, likes_gold, pair())
    assert figure(both, "rating").n == 8
    assert figure(both, "position_consistency").n == 4
    other = Arena().measure(pair("silver"), folder, [], Settings(), into)
    assert other.figures == [], "these votes say nothing of other answers"


def test_a_server_that_is_gone_is_one_line_and_answers_stay(tmp_path: Path) -> None:
    judge = EndpointParams(base_url="http://127.0.0.1:9/v1", model="tiny", api_key_env=None, retries=0)
    with pytest.raises(UserError, match=r"benchmark\.judge: nothing answers"):
        Arena().measure(pair(), data(tmp_path / "data"), [], Settings(judge=judge), tmp_path / "rows")
    assert (tmp_path / "rows/answers-fine-tuned.jsonl").exists()


def test_mt_bench_as_published_is_the_whole_and_a_part_is_not(tmp_path: Path) -> None:
    names = ("writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem", "humanities")
    rows = [{"question_id": 81 + at, "category": names[at // 10], "turns": [f"{at}?"]} for at in range(80)]
    folder = write(tmp_path / "data/question.jsonl", rows).parent
    assert Arena().find(folder).scope(names, None) == "full"
    assert Arena().find(folder).scope(names, 3) == "sample"
    part, _ = run(folder, likes_gold, pair(), "math", limit=2)
    rating = figure(part, "rating")
    assert (rating.n, rating.run, rating.out_of, rating.scope) == (2, 1, 8, "sample")
    write(folder / "question.jsonl", [{**row, "question_id": 82 + at} for at, row in enumerate(rows)])
    assert Arena().find(folder).scope(names, None) == "sample", "ten of each category, and not MT-bench's"
    write(folder / "question.jsonl", rows[:79])
    assert Arena().find(folder).scope(names, None) == "sample"


@pytest.mark.parametrize(
    ("name", "rows", "problem"),
    [
        (
            "question.jsonl",
            [{"question_id": 1, "text": "a"}],
            r"question\.jsonl:1: a row needs `question_id` and `turns",
        ),
        ("question.jsonl", [{"question_id": 1, "turns": ["a"]}] * 2, "two with one question_id"),
        ("answers/other.jsonl", [{"question_id": 500}], r"other\.jsonl:1: a row needs `question_id` and `answers`"),
        ("answers/other.jsonl", [{"question_id": 7, "answers": ["a"]}], "answers none of the questions"),
        ("answers/base.jsonl", [{"question_id": 500, "answers": ["a", "b"]}], "rename the file"),
    ],
)
def test_another_format_is_one_line(tmp_path: Path, name: str, rows: list[dict[str, Any]], problem: str) -> None:
    folder = data(tmp_path / "data", 1)
    write(folder / name, rows)
    with pytest.raises(UserError, match=problem):
        run(folder, likes_gold, pair())


def test_nothing_to_ask_and_nobody_to_fight(tmp_path: Path) -> None:
    assert not Arena().find(tmp_path).rows
    with pytest.raises(UserError, match="no question of poetry"):
        run(data(tmp_path / "data"), likes_gold, pair(), "poetry")
    with pytest.raises(UserError, match="a battle needs two"):
        run(tmp_path / "data", likes_gold, pair()[:1])
