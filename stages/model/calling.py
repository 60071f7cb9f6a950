"""Many chat requests to one endpoint at once: none asked twice, none lost, none invented.

`answered` asks through a store of calls, `ask` without one; see `stages.model.endpoint` for both.
"""

import asyncio
import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, wait_exponential_jitter

from stages.model.calls import CallStore
from stages.model.endpoint import Answers, EndpointParams, Outcome, Pace, Refusal, Reply, Request
from stages.model.wire import CallError, NoConnectionError, NoEntryError, RefusedError, Wire
from stages.pipeline.errors import StoppedError, UserError
from stages.pipeline.progress import Bar, bar
from stages.pipeline.stopping import Stop, stoppable

MAX_BACKOFF = 30.0
"""Seconds between two tries of one request, at most."""

GIVE_UP_AFTER = 5
"""Requests in a row that failed in all their tries: the server is gone."""

QUICK_TRIES = 3
"""For a connection at the start: a server that is just restarting is waited for, one that is not there is not."""


def answered(
    requests: Sequence[Request],
    endpoint: EndpointParams,
    store: CallStore,
    *,
    where: str,
    label: str,
    pace: Pace | None = None,
) -> Answers:
    """An outcome for each request: from the store, else asked for and kept. Equal requests are asked once.

    `where` is the endpoint's place in params.yaml, for messages; `label` is the bar's; `pace` is the endpoint's own
    where none is given.

    Raises:
        UserError: calls could not be made; what was answered is kept.
        StoppedError: told to stop; what was answered is kept.
    """
    keys = [request.key(endpoint) for request in requests]
    known: dict[str, Outcome] = {}
    waiting: dict[str, Request] = {}
    for key, request in zip(keys, requests, strict=True):
        if key not in known and key not in waiting:
            reply = _restored(store.get(key))
            if reply is None:
                waiting[key] = request
            else:
                known[key] = reply
    asked = list(waiting)

    def keep(at: int, outcome: Outcome) -> None:
        known[asked[at]] = outcome
        if isinstance(outcome, Reply):  # a refusal may be another server's tomorrow: a longer context, a changed filter
            store.put(asked[at], outcome._asdict())

    ask(
        [waiting[key] for key in asked], endpoint, where=where, label=label, pace=pace or endpoint.pace, on_outcome=keep
    )
    return Answers([known[key] for key in keys], len(asked), len(keys) - len(asked))


def _restored(value: Mapping[str, Any] | None) -> Reply | None:
    if value is None or set(value) != set(Reply._fields):
        return None
    first = value["first_token"]
    return Reply(**{**value, "first_token": first and [(token, logprob) for token, logprob in first]})


def ask(
    requests: Sequence[Request],
    endpoint: EndpointParams,
    *,
    where: str,
    label: str,
    pace: Pace,
    on_outcome: Callable[[int, Outcome], None],
) -> None:
    """Send all requests; `on_outcome` is told each outcome with its request's number, as they come.

    The first goes out alone: where the server, its key or its model is wrong, that is said at once.

    Raises:
        UserError: no key, no server, a wrong model; or, at the end, calls that failed in all their tries, counted.
        StoppedError: told to stop.
    """
    if not requests:
        return
    key = _read_key(endpoint, where)
    for name in ("openai", "httpx2", "httpcore2"):  # at debug level they print headers, and what a server echoes
        logging.getLogger(name).setLevel(logging.WARNING)
    stop = Stop()
    with stoppable(stop), bar(label, len(requests)) as progress:
        caller = _Caller(endpoint, key, where, pace, progress)
        asyncio.run(caller.run(requests, on_outcome, stop))


def _read_key(endpoint: EndpointParams, where: str) -> str | None:
    if endpoint.api_key_env is None:
        return None
    key = os.environ.get(endpoint.api_key_env, "").strip()
    if not key:
        raise UserError(
            f"{where}.api_key_env: the environment variable {endpoint.api_key_env} is not set or is empty; "
            "put the key into it, or write null for an endpoint that wants none"
        )
    if not key.isascii() or not key.isprintable():
        raise UserError(f"{where}.api_key_env: what {endpoint.api_key_env} holds is no key: it has unusual characters")
    return key


class _Limiter:
    """When the next call may start."""

    def __init__(self, per_minute: float) -> None:
        self._interval = 60 / per_minute if per_minute else 0.0
        self._next = 0.0

    async def turn(self) -> None:
        now = time.monotonic()
        at = max(now, self._next)
        self._next = at + self._interval
        await asyncio.sleep(at - now)

    def pause(self, seconds: float) -> None:
        """A server that is overrun says so to one call and means all."""
        self._next = max(self._next, time.monotonic() + seconds)


class _Caller:
    """All requests of one `ask`."""

    def __init__(self, endpoint: EndpointParams, key: str | None, where: str, pace: Pace, progress: Bar) -> None:
        self._endpoint = endpoint
        self._key = key
        self._where = where
        self._pace = pace
        self._progress = progress
        self._limiter = _Limiter(pace.requests_per_minute)
        self._failed: Counter[str] = Counter()
        self._last_failure = ""
        self._done = 0
        self._streak = 0
        self._first = True
        self._gone = False
        self._began = time.monotonic()
        self._backoff = wait_exponential_jitter(multiplier=pace.first_wait, max=MAX_BACKOFF, jitter=pace.first_wait)

    async def run(self, requests: Sequence[Request], on_outcome: Callable[[int, Outcome], None], stop: Stop) -> None:
        """Send all; look five times a second whether to stop."""
        self._wire = Wire(self._endpoint, self._key, self._pace)
        self._on_outcome = on_outcome
        work = asyncio.create_task(self._send_all(requests))
        try:
            while not work.done() and not stop.reason:
                await asyncio.wait({work}, timeout=0.2)
            if not work.done():
                raise StoppedError(
                    f"{self._where}: stopped by {stop.reason}; {self._done} replies of this run are kept; run it again"
                )
            work.result()
            self._account(len(requests))
        finally:
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)
            await self._wire.close()

    async def _send_all(self, requests: Sequence[Request]) -> None:
        waiting = iter(enumerate(requests))
        await self._send(*next(waiting))
        self._first = False
        async with asyncio.TaskGroup() as group:
            for _ in range(min(self._pace.concurrency, len(requests) - 1)):
                group.create_task(self._work(waiting))

    async def _work(self, waiting: Iterator[tuple[int, Request]]) -> None:
        for number, request in waiting:
            if self._gone:
                return
            await self._send(number, request)

    async def _send(self, number: int, request: Request) -> None:
        outcome: Outcome
        try:
            outcome = await AsyncRetrying(
                retry=retry_if_exception(lambda error: isinstance(error, CallError) and error.passing),
                wait=self._wait,
                stop=self._enough,
                reraise=True,
            )(self._try, request)
        except RefusedError as error:
            if self._first:
                await self._check_model(error)
            outcome = Refusal(str(error))
        except CallError as error:
            if self._first and isinstance(error, NoConnectionError | NoEntryError):
                raise await self._explain(error) from None
            self._count(error)
            return
        self._done += 1
        self._streak = 0
        self._on_outcome(number, outcome)
        self._progress.advance(note=f"{self._done / (time.monotonic() - self._began):.1f} calls/s")

    async def _try(self, request: Request) -> Reply:
        await self._limiter.turn()
        try:
            return await self._wire.send(request)
        except CallError as error:
            self._limiter.pause(error.retry_after)
            raise

    def _count(self, error: CallError) -> None:
        self._failed[error.kind] += 1
        self._last_failure = f"; the last one said {error}" if error.kind != str(error) else ""
        self._streak += 1
        # 403 is also what some servers say to a single request they find offensive.
        lost = isinstance(error, NoEntryError) and error.kind != "HTTP 403"
        self._gone = self._gone or lost or self._streak >= GIVE_UP_AFTER

    def _wait(self, state: RetryCallState) -> float:
        error = state.outcome and state.outcome.exception()
        return max(self._backoff(state), error.retry_after if isinstance(error, CallError) else 0.0)

    def _enough(self, state: RetryCallState) -> bool:
        error = state.outcome and state.outcome.exception()
        if self._first and isinstance(error, NoConnectionError) and state.attempt_number >= QUICK_TRIES:
            return True
        return self._gone or state.attempt_number > self._pace.retries

    async def _check_model(self, error: RefusedError) -> None:
        """Some servers say 400 to a model they do not have, in words of their own."""
        name, words = self._endpoint.model, str(error)
        if name in words or "model" in words.lower():
            offered = await self._wire.offered()
            if name not in offered and (offered or name in words):
                raise await self._explain(error) from None

    async def _explain(self, error: CallError) -> UserError:
        """What to mend, where not a single call can be made."""
        url, env = self._endpoint.base_url, self._endpoint.api_key_env
        if isinstance(error, NoConnectionError):
            return UserError(f"{self._where}: nothing answers at {url} ({error}); start the server or mend base_url")
        if error.kind in ("HTTP 401", "HTTP 403"):
            remedy = f"mend the key in {env}" if env else "name the environment variable with its key in api_key_env"
            return UserError(f"{self._where}: {url} does not let us in ({error}); {remedy}")
        offered = await self._wire.offered()
        if offered and self._endpoint.model not in offered:
            names = ", ".join(offered[:5]) + (f" and {len(offered) - 5} more" if len(offered) > 5 else "")
            return UserError(f"{self._where}: {url} has no model '{self._endpoint.model}'; it offers: {names}")
        return UserError(
            f"{self._where}: {url} has no such model or is no such address ({error}); "
            "mend model or base_url, which usually ends in /v1"
        )

    def _account(self, total: int) -> None:
        failed = sum(self._failed.values())
        if not failed:
            return
        kinds = ", ".join(f"{count} x {kind}" for kind, count in self._failed.most_common())
        unsent = total - failed - self._done
        not_sent = f", and {unsent} were not sent, as nothing came back any more" if unsent else ""
        raise UserError(
            f"{self._where}: {failed} of {total} calls failed ({kinds}){self._last_failure}{not_sent}; "
            f"the other {self._done} are kept; run it again to go on"
        )
