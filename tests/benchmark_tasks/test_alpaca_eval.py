import json
import math
import re
from pathlib import Path

import pytest

from stages.benchmarks.alpaca_eval import (
    AGAIN,
    OFFICIAL_PROMPT,
    PUBLISHED,
    AlpacaEval,
    Preference,
    first_preferred,
    shown_first,
)
from stages.benchmarks.benchmark import Measurement, Settings
from stages.model.endpoint import EndpointParams, Reply
from stages.pipeline.errors import UserError
from tests.benchmark_tasks.oracles import OracleSubject
from tests.judging.servers import Act, Body, Script, StandIn, fail, say, serving

COUNT = 24


@pytest.fixture(autouse=True)
def own_calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))


def data(folder: Path, count: int = COUNT, *, whole: bool = False) -> Path:
    folder.mkdir()
    sets = [name for name, size in PUBLISHED.items() for _ in range(size)] if whole else ["koala", "vicuna"] * count
    rows = [
        {"dataset": sets[at], "instruction": f"Count to {at}.", "output": f"plain {at}", "generator": "old-model"}
        for at in range(len(sets) if whole else count)
    ]
    (folder / "alpaca_eval.json").write_text(json.dumps(rows))
    return folder


def judge_at(url: str) -> EndpointParams:
    return EndpointParams(base_url=url, model="tiny", api_key_env=None, retries=0)


def outputs_shown(body: Body) -> tuple[str, str]:
    """What stands as m and as M."""
    text = str(body["messages"][-1]["content"])
    m, big_m = (re.search(rf"BEGIN OUTPUT OF {name} \w+-+\n(.*?)\n-----END", text, re.DOTALL) for name in "mM")
    assert m
    assert big_m
    return m[1], big_m[1]


def weighted(*tokens: tuple[str, float]) -> Act:
    """The first of the tokens, with the probabilities of all."""
    top = [{"token": token, "logprob": math.log(share)} for token, share in tokens]
    return say(tokens[0][0], logprobs={"content": [{**top[0], "top_logprobs": top}]})


def likes_gold(share: float) -> Script:
    """A judge with that probability for an output that says gold, half and half where both do or none does."""

    def script(body: Body, _: int) -> Act:
        m, big_m = ("gold" in output for output in outputs_shown(body))
        p = 0.5 if m == big_m else share if m else 1 - share
        return weighted(("m", p * 0.8), ("M", (1 - p) * 0.8), ("The", 0.2))

    return script


def run(
    folder: Path, script: Script, subject: OracleSubject | None = None, *wanted: str, **how: object
) -> tuple[Measurement, StandIn]:
    subject = subject or OracleSubject(reply=lambda chat: "gold")
    into = folder.parent / "rows"
    with serving(script) as server:
        settings = Settings(judge=judge_at(server.url), resamples=100, **how)  # type: ignore[arg-type]
        return AlpacaEval().measure([subject], folder, list(wanted), settings, into), server


def value(measured: Measurement, metric: str, task: str = "alpaca_eval") -> float:
    (found,) = (figure.value for figure in measured.figures if (figure.task, figure.metric) == (task, metric))
    return found


def test_gold_wins_all_by_weight_and_by_letter(tmp_path: Path) -> None:
    measured, _ = run(data(tmp_path / "data"), likes_gold(0.9))
    assert value(measured, "win_rate") == pytest.approx(0.9)
    assert value(measured, "discrete_win_rate") == 1.0
    assert value(measured, "invalid_fraction") == 0.0
    assert value(measured, "win_rate", "alpaca_eval/koala") == pytest.approx(0.9)
    figure = measured.figures[0]
    assert (figure.n, figure.run, figure.out_of, figure.scope) == (COUNT, 2, 5, "sample")
    assert "raw, not length-controlled" in figure.protocol
    assert "old-model" in figure.protocol
    assert "weighted" in figure.protocol
    assert not any("lc" in figure.metric for figure in measured.figures)


def test_answers_as_good_as_the_baseline_win_half(tmp_path: Path) -> None:
    """A judge that goes by place alone: the random order makes chance of it."""
    measured, server = run(data(tmp_path / "data", 200), lambda body, _: weighted(("m", 0.99), ("M", 0.01)))
    assert 0.38 < value(measured, "win_rate") < 0.62
    first = sum("plain" not in outputs_shown(body)[0] for body in server.chats)
    assert first == sum(shown_first(f"Count to {at}.", 1) for at in range(200))
    assert 80 < first < 120


def test_order_depends_on_instruction_and_seed_alone() -> None:
    orders = [[shown_first(f"Say {at}.", seed) for at in range(500)] for seed in (1, 1, 2)]
    assert orders[0] == orders[1]
    assert orders[0] != orders[2]
    assert all(210 < sum(order) < 290 for order in orders)


def test_preference_by_hand() -> None:
    def read(text: str, *tokens: tuple[str, float]) -> Preference | None:
        return first_preferred(Reply(text, "length", [(token, math.log(p)) for token, p in tokens] or None, 9, 1))

    assert read("m", ("m", 0.3), ("M", 0.1), ("x", 0.6)) == Preference(0.75, True)
    assert read("M", ("M", 0.4)) == Preference(0.0, True)  # what is not among the alternatives has no probability
    assert read("x", ("x", 0.9), ("M", 0.05), ("m", 0.05)) == Preference(0.5, True)
    assert read("The", ("The", 0.9), ("A", 0.1)) is None  # nan in the package's logprob_parser
    assert read(" M.") == Preference(0.0, False)
    assert read("mM") is None
    assert read("") is None


def test_without_log_probabilities_the_letter_counts_and_that_is_said(tmp_path: Path) -> None:
    measured, _ = run(data(tmp_path / "data"), lambda body, _: say("m" if outputs_shown(body)[0] == "gold" else "M"))
    assert value(measured, "win_rate") == value(measured, "discrete_win_rate") == 1.0
    assert "gives no log probabilities" in measured.figures[0].protocol


def test_unreadable_verdicts_are_asked_once_more_then_counted(tmp_path: Path) -> None:
    def script(body: Body, _: int) -> Act:
        if "gold 3" in outputs_shown(body):
            return say("Both are fine.")
        return weighted(("m", 1.0)) if body["messages"][-1]["content"].endswith(AGAIN) else say("Hm")

    subject = OracleSubject(reply=lambda chat: "gold " + re.findall(r"\d+", chat[0]["content"])[0])
    measured, server = run(data(tmp_path / "data", 8), script, subject)
    assert value(measured, "invalid_fraction") == 1 / 8
    assert len(server.chats) == 16
    assert [row.score is None for row in measured.rows] == [at == 3 for at in range(8)]
    assert next(figure.n for figure in measured.figures if figure.metric == "win_rate") == 7


def test_no_verdict_can_be_read(tmp_path: Path) -> None:
    measured, _ = run(data(tmp_path / "data", 2), lambda body, _: fail(400, "too long"))
    assert {f.metric for f in measured.figures if f.task == "alpaca_eval"} == {"invalid_fraction", "avg_length"}


def test_equal_outputs_tie_without_a_call_and_calls_are_kept(tmp_path: Path) -> None:
    folder = data(tmp_path / "data", 4)
    subject = OracleSubject(reply=lambda chat: "plain " + re.findall(r"\d+", chat[0]["content"])[0])
    measured, server = run(folder, likes_gold(0.9), subject)
    assert value(measured, "win_rate") == value(measured, "discrete_win_rate") == 0.5
    assert not server.chats
    with serving(likes_gold(0.9)) as server:
        settings = Settings(judge=judge_at(server.url), resamples=100)
        gold = OracleSubject(reply=lambda chat: "gold")
        both = [AlpacaEval().measure([gold], folder, [], settings, tmp_path / "rows") for _ in range(2)]
        assert len(server.chats) == 4
        assert both[0] == both[1]


def test_all_published_rows_are_the_whole_and_a_part_is_not(tmp_path: Path) -> None:
    folder = data(tmp_path / "data", whole=True)
    found = AlpacaEval().find(folder)
    assert sum(found.rows.values()) == 805
    assert found.scope(list(found.published), None) == "full"
    subject = OracleSubject(reply=lambda chat: "plain " + re.findall(r"\d+", chat[0]["content"])[0])
    whole, _ = run(folder, likes_gold(0.9), subject)
    assert {figure.scope for figure in whole.figures} == {"full"}
    part, _ = run(folder, likes_gold(0.9), subject, "vicuna")
    assert {(f.task, f.scope, f.n) for f in part.figures if f.metric == "win_rate"} == {
        ("alpaca_eval", "sample", 80),
        ("alpaca_eval/vicuna", "full", 80),
    }
    few, _ = run(folder, likes_gold(0.9), subject, limit=2)
    assert {figure.scope for figure in few.figures} == {"sample"}
    assert few.figures[0].n == 10


def test_the_official_prompt_is_used_word_for_word(tmp_path: Path) -> None:
    folder = data(tmp_path / "data", 2)
    (folder / OFFICIAL_PROMPT).write_text(
        "<|im_start|>system\nYou choose.\n<|im_end|>\n<|im_start|>user\n{\n  {instruction} | {output_1} | {output_2}\n}"
        "\n<|im_end|>"
    )
    subject = OracleSubject(reply=lambda chat: "{instruction} <|im_end|>")
    measured, server = run(folder, lambda body, _: weighted(("m", 1.0)), subject)
    system, user = server.chats[0]["messages"]
    assert system == {"role": "system", "content": "You choose."}
    texts = ["{instruction} <|im_end|>", "plain 0"]
    shown = texts if shown_first("Count to 0.", 1) else texts[::-1]
    assert user["content"] == "{\n  Count to 0. | " + " | ".join(shown) + "\n}"
    assert "official words" in measured.figures[0].protocol
    (folder / OFFICIAL_PROMPT).write_text("Choose.")
    with pytest.raises(UserError, match=r"alpaca_eval_clf\.txt: not the prompt"):
        run(folder, likes_gold(0.9))


def test_the_official_tool_finds_its_model_outputs(tmp_path: Path) -> None:
    run(data(tmp_path / "data", 2), likes_gold(0.9))
    outputs = json.loads((tmp_path / "rows/model_outputs-fine-tuned.json").read_text())
    assert outputs[1] == {
        "dataset": "vicuna", "instruction": "Count to 1.", "output": "gold", "generator": "onset-fine-tuned"
    }  # fmt: skip


def test_no_judge_and_no_server_are_one_line_each_and_answers_stay(tmp_path: Path) -> None:
    folder, subject = data(tmp_path / "data", 2), OracleSubject(reply=lambda chat: "gold")
    with pytest.raises(UserError, match=r"benchmark\.judge, as in \{base_url"):
        AlpacaEval().measure([subject], folder, [], Settings(), tmp_path / "rows")
    down = Settings(judge=judge_at("http://127.0.0.1:9/v1"))
    with pytest.raises(UserError, match=r"benchmark\.judge: nothing answers at http://127\.0\.0\.1:9/v1"):
        AlpacaEval().measure([subject], folder, [], down, tmp_path / "rows")
    assert (tmp_path / "rows/model_outputs-fine-tuned.json").exists()


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[]", "holds no row"),
        ('[{"instruction": "a", "output": "b"}]', r"alpaca_eval\.json:1: a row needs dataset"),
        ('[{"instruction": 1', "broken JSON"),
    ],
)
def test_another_format_is_one_line(tmp_path: Path, text: str, problem: str) -> None:
    (tmp_path / "alpaca_eval.json").write_text(text)
    with pytest.raises(UserError, match=problem):
        AlpacaEval().find(tmp_path)


def test_without_a_file_nothing_is_there(tmp_path: Path) -> None:
    assert not AlpacaEval().find(tmp_path).rows
