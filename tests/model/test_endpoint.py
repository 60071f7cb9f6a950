import json
import logging
import socket
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from stages.model.calling import GIVE_UP_AFTER, answered, ask
from stages.model.calls import CallStore
from stages.model.endpoint import Answers, EndpointParams, Outcome, Pace, Refusal, Reply, Request
from stages.pipeline.errors import UserError
from tests.judging.servers import FAULTS, KEY, Act, Body, StandIn, fail, hang_up, say, say_slowly, send, serving

PACE = Pace(concurrency=4, requests_per_minute=0, timeout=5, retries=2, first_wait=0.01)
WHERE = "judge.endpoints.gpt"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[CallStore]:
    store = CallStore(tmp_path / "calls.db")
    yield store
    store.close()


def endpoint_at(url: str, **fields: Any) -> EndpointParams:
    return EndpointParams.model_validate({"base_url": url, "model": "tiny", "api_key_env": None, **fields})


def requests(count: int) -> list[Request]:
    return [Request([{"role": "user", "content": f"question {number}"}], 16) for number in range(count)]


def number_of(body: Body) -> int:
    return int(body["messages"][0]["content"].split()[1])


def echo(body: Body, _: int) -> Act:
    return say(f"answer {number_of(body)}")


def run(asked: list[Request], server: StandIn, store: CallStore, pace: Pace = PACE, **fields: Any) -> Answers:
    return answered(asked, endpoint_at(server.url, **fields), store, where=WHERE, label="gpt", pace=pace)


def texts(outcomes: list[Outcome]) -> list[str]:
    return [outcome.text if isinstance(outcome, Reply) else outcome.reason for outcome in outcomes]


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"base_url": "http://ada:lovelace@host/v1"}, "no user and no password"),
        ({"base_url": "https://host/v1?api_key=lovelace"}, "question mark"),
        ({"base_url": "host:8000/v1"}, "as in http"),
        ({"base_url": "ftp://host/v1"}, "as in http"),
        ({"base_url": "http://host:port/v1"}, "as in http"),
        ({"api_key_env": "sk-lovelace"}, "never a key"),
        ({"options": {"api_key": "lovelace"}}, "no key"),
        ({"options": {"extra": [{"Authorization": "lovelace"}]}}, "no key"),
        ({"options": {"extra_headers": {"x": "lovelace"}}}, "no key"),
        ({"options": {"stream": True}}, "must not set stream"),
        ({"options": {"stop": {1, 2}}}, "JSON"),
        ({"model": ""}, "at least 1 character"),
        ({"key": 1}, "not permitted"),
    ],
)
def test_impossible_parameters_are_refused_and_secrets_not_repeated(fields: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValidationError) as caught:
        endpoint_at("http://host/v1", **{"base_url": "http://host/v1", **fields})
    problem = caught.value.errors()[0]
    assert complaint in problem["msg"]
    # params.yaml's messages show the input unless it is a section
    assert isinstance(problem["input"], dict) or "lovelace" not in str(problem["input"])


def test_a_trailing_slash_is_the_same_endpoint() -> None:
    one, other = (endpoint_at(url) for url in ("http://host/v1", " http://host/v1/ "))
    assert requests(1)[0].key(one) == requests(1)[0].key(other)


def test_options_win_over_the_stage_and_null_takes_away() -> None:
    request = Request([{"role": "user", "content": "x"}], 16, {"temperature": 0, "top_p": 1})
    body = request.body(endpoint_at("http://host", options={"temperature": 1, "max_tokens": None, "seed": 3}))
    assert body == {
        "model": "tiny",
        "messages": [{"role": "user", "content": "x"}],
        "temperature": 1,
        "top_p": 1,
        "seed": 3,
    }


def test_every_request_has_its_reply_in_order_and_is_asked_once(store: CallStore) -> None:
    with serving(echo) as server:
        first = run([*requests(20), *requests(20)], server, store)
        assert texts(first.outcomes) == [f"answer {n}" for n in range(20)] * 2
        assert (first.made, first.stored, len(server.chats)) == (20, 20, 20)
        assert first.line() == "20 calls made, 20 answered from the store, 400 tokens read and 80 written"
        second = run(requests(30), server, store)
        assert (second.made, second.stored, len(server.chats)) == (10, 20, 30)
        assert second.outcomes[0] == first.outcomes[0]
        assert not any(server.keys)


def test_what_is_sent_is_the_body_and_the_key_only_where_wanted(
    store: CallStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GPT_KEY", f"{KEY}\n")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-somebody-else")
    with serving(echo) as server:
        run(requests(1), server, store, api_key_env="GPT_KEY", options={"seed": 7})
        run(requests(1), server, store)
        assert server.keys == [f"Bearer {KEY}", None]
        assert server.chats[0] == {
            "model": "tiny",
            "messages": [{"role": "user", "content": "question 0"}],
            "max_tokens": 16,
            "seed": 7,
        }


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_that_passes_costs_nothing(fault: str, store: CallStore) -> None:
    def script(body: Body, number: int) -> Act:
        return FAULTS[fault] if number in (1, 3) else echo(body, number)

    with serving(script) as server:
        found = run(requests(6), server, store, PACE._replace(timeout=0.6 if fault == "no reply within" else 10))
        assert texts(found.outcomes) == [f"answer {n}" for n in range(6)]
        assert len(server.chats) == 8


def test_faults_that_stay_are_counted_and_the_rest_is_kept(store: CallStore) -> None:
    broken = dict(enumerate([*FAULTS.values()] * 2, start=3))
    well = {"on": False}

    def script(body: Body, number: int) -> Act:
        if well["on"] or number_of(body) % 3:
            return echo(body, number)
        return broken[3 + number_of(body) // 3 - 1] if number_of(body) else echo(body, number)

    count = 3 * len(FAULTS) + 3
    with serving(script) as server:
        with pytest.raises(UserError) as caught:
            run(requests(count), server, store, PACE._replace(timeout=3, retries=1))
        message = str(caught.value)
        assert message.startswith(f"{WHERE}: {len(FAULTS)} of {count} calls failed (")
        assert "10 x reply that is no chat completion" in message
        assert "2 x connection closed" in message
        assert "2 x reply larger than 8 MiB" in message
        for kind in ("HTTP 429", "HTTP 500", "HTTP 502", "HTTP 503", "compressed reply", "no reply within 3 s"):
            assert f"1 x {kind}" in message
        assert f"the other {count - len(FAULTS)} are kept; run it again" in message
        well["on"] = True
        before = len(server.chats)
        found = run(requests(count), server, store)
        assert len(server.chats) - before == len(FAULTS)
        assert texts(found.outcomes) == [f"answer {n}" for n in range(count)]


def test_a_refused_request_is_an_outcome_not_a_failure_and_is_not_kept(store: CallStore) -> None:
    def script(body: Body, number: int) -> Act:
        return fail(400, "context is 16 tokens, you sent 17") if number_of(body) in (0, 4) else echo(body, number)

    with serving(script) as server:
        found = run(requests(6), server, store)
        assert found.outcomes[0] == Refusal("HTTP 400: context is 16 tokens, you sent 17")
        assert sum(isinstance(outcome, Refusal) for outcome in found.outcomes) == 2
        assert len(server.chats) == 6
        run(requests(6), server, store)
        assert len(server.chats) == 8


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def test_no_server_is_said_at_once(store: CallStore) -> None:
    began = time.monotonic()
    endpoint = endpoint_at(f"http://127.0.0.1:{free_port()}/v1")
    with pytest.raises(
        UserError, match=r"nothing answers at http://127.0.0.1:\d+/v1 \(no connection: Connection refus"
    ):
        answered(requests(50), endpoint, store, where=WHERE, label="gpt", pace=Pace(8, 0, 60, 6))
    assert time.monotonic() - began < 6


def test_an_unknown_host_is_said_at_once(store: CallStore) -> None:
    with pytest.raises(UserError, match=r"nothing answers at http://no-such-host.invalid/v1"):
        answered(requests(2), endpoint_at("http://no-such-host.invalid/v1"), store, where=WHERE, label="g", pace=PACE)


@pytest.mark.parametrize("code", [401, 403])
def test_a_wrong_key_is_said_at_once_and_never_shown(
    code: int, store: CallStore, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GPT_KEY", KEY)
    with serving(lambda body, _: fail(code, f"Incorrect API key provided: {KEY}\x1b[31m", X_Key=KEY)) as server:
        with pytest.raises(UserError) as caught:
            run(requests(9), server, store, api_key_env="GPT_KEY")
        assert len(server.chats) == 1
    assert "mend the key in GPT_KEY" in str(caught.value)
    assert "Incorrect API key provided: [key]" in str(caught.value)
    assert "\x1b" not in str(caught.value)
    assert KEY not in repr(caught.getrepr(showlocals=False)) + "".join(capfd.readouterr())


def test_a_key_that_is_wanted_and_not_named(store: CallStore) -> None:
    with serving(lambda body, _: fail(401, "no key")) as server, pytest.raises(UserError, match="in api_key_env"):
        run(requests(1), server, store)


@pytest.mark.parametrize("value", [None, "", "  ", "ключ"])
def test_a_missing_key_is_said_before_any_call(
    value: str | None, store: CallStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GPT_KEY", raising=False)
    if value is not None:
        monkeypatch.setenv("GPT_KEY", value)
    with serving(echo) as server:
        with pytest.raises(UserError, match=r"^judge.endpoints.gpt.api_key_env: .*GPT_KEY"):
            run(requests(1), server, store, api_key_env="GPT_KEY")
        assert not server.chats


def test_the_key_is_nowhere(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("GPT_KEY", KEY)
    logging.getLogger("httpcore2").setLevel(logging.DEBUG)
    caplog.set_level(logging.DEBUG)
    store = CallStore(tmp_path / "calls.db")

    def script(body: Body, number: int) -> Act:
        if number_of(body) == 3:
            return fail(500, f"cannot use {KEY}", X_Key=KEY)
        token = {"token": KEY, "logprob": -0.1, "top_logprobs": [{"token": KEY, "logprob": -0.1}]}
        return say(f"your key is {KEY}", finish_reason=KEY, logprobs={"content": [token]})

    with serving(script) as server, pytest.raises(UserError) as caught:
        run(requests(5), server, store, api_key_env="GPT_KEY")
    assert "HTTP 500: cannot use [key]" in str(caught.value)
    store.close()
    written = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert b"your key is [key]" in written
    assert KEY.encode() not in written
    assert KEY not in caplog.text + str(caught.value) + "".join(capfd.readouterr())


@pytest.mark.parametrize("code", [404, 400])
def test_an_unknown_model_is_said_with_what_there_is(code: int, store: CallStore) -> None:
    with serving(lambda body, _: fail(code, "model 'tiny' does not exist")) as server:
        server.models = [f"model-{n}" for n in range(7)]
        with pytest.raises(UserError) as caught:
            run(requests(9), server, store)
        assert len(server.chats) == 1
    offer = "model-0, model-1, model-2, model-3, model-4 and 2 more"
    assert str(caught.value) == f"{WHERE}: {server.url} has no model 'tiny'; it offers: {offer}"


@pytest.mark.parametrize("code", [404, 405, 307])
def test_a_wrong_path_is_told_from_a_wrong_model(code: int, store: CallStore) -> None:
    with serving(lambda body, _: fail(code)) as server, pytest.raises(UserError, match="usually ends in /v1"):
        run(requests(1), server, store)


def test_a_server_that_goes_away_ends_the_run_and_the_next_goes_on(store: CallStore) -> None:
    gone = {"yes": True}

    def script(body: Body, number: int) -> Act:
        return hang_up if gone["yes"] and number >= 10 else echo(body, number)

    with serving(script) as server:
        with pytest.raises(UserError) as caught:
            run(requests(100), server, store)
        failed = int(str(caught.value).removeprefix(f"{WHERE}: ").split()[0])
        assert GIVE_UP_AFTER <= failed < GIVE_UP_AFTER + PACE.concurrency
        assert f"({failed} x connection closed), and {90 - failed} were not sent" in str(caught.value)
        assert "the other 10 are kept" in str(caught.value)
        gone["yes"] = False
        before = len(server.chats)
        assert texts(run(requests(100), server, store).outcomes) == [f"answer {n}" for n in range(100)]
        assert len(server.chats) - before == 90


def test_retry_after_is_heeded_by_all(store: CallStore) -> None:
    began: list[float] = []

    def script(body: Body, number: int) -> Act:
        began.append(time.monotonic())
        return fail(429, Retry_After="0.5") if number == 1 else echo(body, number)

    with serving(script) as server:
        run(requests(8), server, store, PACE._replace(concurrency=1))
    assert 0.5 <= began[2] - began[1] < 1.5


@pytest.mark.parametrize("header", ["Wed, 21 Oct 2099 07:28:00 GMT", "nan", "-5", "inf"])
def test_an_odd_retry_after_holds_nothing_up(header: str, store: CallStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stages.model.wire.MAX_RETRY_AFTER", 0.2)
    with serving(lambda body, n: fail(429, Retry_After=header) if n == 0 else echo(body, n)) as server:
        assert texts(run(requests(1), server, store).outcomes) == ["answer 0"]


def test_an_empty_account_is_not_asked_again(store: CallStore) -> None:
    def broke(body: Body, number: int) -> Act:
        error = json.dumps({"error": {"message": "You exceeded your quota", "code": "insufficient_quota"}}).encode()
        return lambda handler: handler.reply(429, error)

    with serving(broke) as server, pytest.raises(UserError, match="You exceeded your quota"):
        run(requests(20), server, store, PACE._replace(concurrency=1))
    assert len(server.chats) == GIVE_UP_AFTER


def test_concurrency_and_rate_are_bounded(store: CallStore) -> None:
    with serving(lambda body, n: say_slowly("x", 0.05)) as server:
        run(requests(16), server, store, PACE._replace(concurrency=3))
        assert server.most_under_way == 3
        began = time.monotonic()
        run(requests(26), server, store, PACE._replace(concurrency=8, requests_per_minute=60 * 20))
        assert time.monotonic() - began >= 9 / 20


def test_a_server_without_logprobs_is_asked_without_from_then_on(store: CallStore) -> None:
    def script(body: Body, number: int) -> Act:
        return fail(400, "unknown field logprobs") if "logprobs" in body else echo(body, number)

    asked = [Request(request.messages, 16, logprobs=True) for request in requests(5)]
    with serving(script) as server:
        found = run(asked, server, store)
        assert texts(found.outcomes) == [f"answer {n}" for n in range(5)]
        assert [body.get("top_logprobs") for body in server.chats] == [20, None, None, None, None, None]
        run(asked, server, store)
        assert len(server.chats) == 6


def test_a_server_with_logprobs_gives_those_of_the_first_word(store: CallStore) -> None:
    words = [("\n", []), ("4", [{"token": "4", "logprob": -0.2}, {"token": "5", "logprob": -1.8}]), ("x", [])]
    content = [{"token": token, "logprob": -0.1, "top_logprobs": top} for token, top in words]
    with serving(lambda body, _: say("\n4x", logprobs={"content": content})) as server:
        found = run([Request(requests(1)[0].messages, 16, logprobs=True)], server, store)
    expected = [("4", -0.2), ("5", -1.8)]
    assert isinstance(found.outcomes[0], Reply)
    assert found.outcomes[0].first_token == expected
    again = run([Request(requests(1)[0].messages, 16, logprobs=True)], server, store)  # the server is gone
    assert again.outcomes == found.outcomes


@pytest.mark.parametrize("odd", [{"logprobs": {"tokens": ["4"]}}, {"logprobs": 3}, {"finish_reason": None}])
def test_side_figures_of_any_shape_do_not_spoil_a_reply(odd: dict[str, Any], store: CallStore) -> None:
    body = {"choices": [{"message": {"content": "4"}, **odd}], "usage": {"prompt_tokens": "many"}}
    with serving(lambda _, __: send(body)) as server:
        assert run(requests(1), server, store).outcomes == [Reply("4", "stop", None, 0, 0)]


def test_a_server_that_renamed_max_tokens_is_obeyed(store: CallStore) -> None:
    def script(body: Body, number: int) -> Act:
        wrong = "max_tokens" in body
        return fail(400, "Use 'max_completion_tokens' instead of 'max_tokens'") if wrong else echo(body, number)

    with serving(script) as server:
        run(requests(4), server, store)
        assert [body.get("max_completion_tokens") for body in server.chats] == [None, 16, 16, 16, 16]


def test_no_proxy_between_us_and_this_machine(store: CallStore, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{free_port()}")
    with serving(echo) as server:
        assert texts(run(requests(1), server, store).outcomes) == ["answer 0"]


def test_without_a_store_each_outcome_is_told_as_it_comes() -> None:
    told: dict[int, Outcome] = {}
    with serving(echo) as server:
        ask(requests(5), endpoint_at(server.url), where=WHERE, label="g", pace=PACE, on_outcome=told.__setitem__)
    assert texts([told[n] for n in range(5)]) == [f"answer {n}" for n in range(5)]


def test_a_store_that_cannot_be_written_loses_calls_not_replies(tmp_path: Path) -> None:
    (tmp_path / "calls.db").mkdir()
    with serving(echo) as server:
        assert len(run(requests(3), server, CallStore(tmp_path / "calls.db")).outcomes) == 3


def test_a_reply_in_the_store_of_another_shape_is_asked_again(tmp_path: Path, store: CallStore) -> None:
    with serving(echo) as server:
        key = requests(1)[0].key(endpoint_at(server.url))
        store.put(key, {"text": "of an older version"})
        assert texts(run(requests(1), server, store).outcomes) == ["answer 0"]
    with sqlite3.connect(tmp_path / "calls.db") as db:
        assert db.execute("SELECT count(*) FROM calls").fetchone() == (1,)
