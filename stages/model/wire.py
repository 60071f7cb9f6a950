"""One call to an OpenAI-compatible endpoint: every way it fails told as a `CallError`, and the key in none of them."""

import asyncio
import ipaddress
import os
import socket
import ssl
from collections.abc import AsyncIterator, Mapping
from functools import cache
from typing import Any, TypeVar
from urllib.parse import urlsplit

import httpx2
import openai
from pydantic import BaseModel, Field, ValidationError

from stages.model.endpoint import EndpointParams, Pace, Reply, Request

MAX_BODY = 8 * 2**20
"""Bytes of a reply; a chat reply has some thousand, and a stream without an end must not fill the memory."""

MAX_RETRY_AFTER = 60.0
"""Seconds; a server that wants a longer pause is asked again sooner."""


class CallError(Exception):
    """One try of one call failed."""

    def __init__(self, kind: str, reason: str = "", *, passing: bool = True, retry_after: float = 0.0) -> None:
        """`kind` is what failures are counted by; `passing` ones are tried again, after `retry_after` seconds."""
        super().__init__(f"{kind}: {reason}" if reason else kind)
        self.kind = kind
        self.passing = passing
        self.retry_after = retry_after


class RefusedError(CallError):
    """The server will not take this request."""


class NoConnectionError(CallError):
    """Nothing answers."""


class NoEntryError(CallError):
    """The server answers, but not to us: the key, the model or the address is wrong."""


Shape = TypeVar("Shape", bound=BaseModel)


class _TooLargeError(httpx2.RequestError):
    """A reply that is larger than any can be."""


class _Capped(httpx2.AsyncByteStream):
    """A body that ends at MAX_BODY with an error."""

    def __init__(self, stream: httpx2.AsyncByteStream) -> None:
        self._stream = stream

    async def __aiter__(self) -> AsyncIterator[bytes]:
        size = 0
        async for part in self._stream:
            size += len(part)
            if size > MAX_BODY:
                raise _TooLargeError(f"reply larger than {MAX_BODY // 2**20} MiB")
            yield part

    async def aclose(self) -> None:
        await self._stream.aclose()


async def _cap(response: httpx2.Response) -> None:
    if response.headers.get("content-encoding", "identity").lower() != "identity":
        raise _TooLargeError("compressed reply, which was not asked for")  # a few bytes of it may be gigabytes
    if isinstance(response.stream, httpx2.AsyncByteStream):
        response.stream = _Capped(response.stream)


class _Message(BaseModel):
    content: str | None = None
    refusal: str | None = None


class _Choice(BaseModel):
    message: _Message
    finish_reason: str | None = None
    logprobs: Any = None


class _Completion(BaseModel):
    """What we read of a chat completion. The SDK's own types are filled without a check."""

    choices: list[_Choice] = Field(min_length=1)
    usage: Any = None


class _Token(BaseModel):
    token: str
    logprob: float


class _Position(_Token):
    top_logprobs: list[_Token] = Field(default_factory=list)


class _Logprobs(BaseModel):
    content: list[_Position] = Field(default_factory=list)


class _Spent(BaseModel):
    prompt_tokens: int = Field(default=0, ge=0)
    completion_tokens: int = Field(default=0, ge=0)


class _Model(BaseModel):
    id: str


class _Models(BaseModel):
    data: list[_Model]


class Wire:
    """Single calls through the SDK, every way they fail told as a `CallError`, and the key in none of their words."""

    def __init__(self, endpoint: EndpointParams, key: str | None, pace: Pace) -> None:
        self._endpoint = endpoint
        self._key = key
        self._timeout = pace.timeout
        # A server may know neither `logprobs` nor `max_tokens`: the first refusal says so, the next request heeds it.
        self._takes_logprobs: bool | None = None
        self._tokens_renamed = False
        self._headers: dict[str, Any] = {} if key else {"Authorization": openai.Omit()}
        host = urlsplit(endpoint.base_url).hostname or ""
        self._http = httpx2.AsyncClient(
            headers={"Accept-Encoding": "identity"},
            event_hooks={"response": [_cap]},
            limits=httpx2.Limits(max_connections=pace.concurrency),
            verify=_certificates(),
            trust_env=not _is_loopback(host),  # no proxy stands between us and this machine
        )
        self._client = openai.AsyncOpenAI(
            base_url=endpoint.base_url,
            api_key=key or "none",
            max_retries=0,
            timeout=pace.timeout,
            http_client=self._http,
        )

    async def close(self) -> None:
        """End all connections."""
        await self._client.close()

    async def send(self, request: Request) -> Reply:
        """One try, in words that the server takes.

        Raises:
            CallError: it failed.
        """
        body = request.body(self._endpoint)
        if self._takes_logprobs is False:
            body = _without_logprobs(body)
        if self._tokens_renamed:
            body = _with_new_name(body)
        while True:
            try:
                reply = await self._post(body)
            except RefusedError as error:
                if "max_tokens" in body and "max_completion_tokens" in str(error):
                    body = _with_new_name(body)
                elif "logprobs" in body and self._takes_logprobs is None:
                    body = _without_logprobs(body)
                else:
                    raise
            else:
                if request.logprobs:
                    self._takes_logprobs = "logprobs" in body
                self._tokens_renamed = self._tokens_renamed or "max_tokens" not in body
                return reply

    async def _post(self, body: dict[str, Any]) -> Reply:
        chat = self._client.chat.completions.with_raw_response
        try:
            async with asyncio.timeout(self._timeout):
                raw = await chat.create(
                    model=self._endpoint.model,
                    messages=body["messages"],
                    extra_body=body,
                    extra_headers=self._headers,
                )
            return self._read(raw.content)
        except (TimeoutError, openai.APITimeoutError):
            raise CallError(f"no reply within {self._timeout:g} s") from None
        except openai.APIStatusError as error:
            raise self._status(error) from None
        except openai.APIConnectionError as error:
            raise self._connection(error) from None

    def _read(self, content: bytes) -> Reply:
        try:
            completion = _Completion.model_validate_json(content)
        except ValidationError:
            raise CallError("reply that is no chat completion") from None
        choice = completion.choices[0]
        # Side figures: servers shape them as they like, and a reply is a reply without them.
        spent = _lenient(_Spent, completion.usage) or _Spent()
        first = _alternatives(_lenient(_Logprobs, choice.logprobs))
        return Reply(
            text=self._redacted(choice.message.content or choice.message.refusal or ""),
            finish_reason=self._redacted(choice.finish_reason or "stop"),
            first_token=[(self._redacted(token.token), token.logprob) for token in first] or None,
            prompt_tokens=spent.prompt_tokens,
            completion_tokens=spent.completion_tokens,
        )

    def _status(self, error: openai.APIStatusError) -> CallError:
        code, reason = error.status_code, self._said(error)
        kind = f"HTTP {code}"
        if code in (400, 413, 422):
            return RefusedError(kind, reason, passing=False)
        if code in (401, 403, 404, 405) or code < 400:  # a POST is not sent elsewhere, where its key was not meant for
            return NoEntryError(kind, reason, passing=False)
        passing = code in (408, 409, 425, 429) or code >= 500
        try:
            wait = float(error.response.headers.get("retry-after", 0))
        except ValueError:  # a date: the usual back-off will do
            wait = 0.0
        wait = min(max(wait, 0.0), MAX_RETRY_AFTER) if wait == wait else 0.0
        return CallError(kind, reason, passing=passing and error.code != "insufficient_quota", retry_after=wait)

    def _connection(self, error: openai.APIConnectionError) -> CallError:
        cause = error.__cause__
        if isinstance(cause, _TooLargeError):
            return CallError(str(cause))
        if isinstance(cause, httpx2.ConnectError | httpx2.ProxyError | httpx2.UnsupportedProtocol):
            return NoConnectionError("no connection", self.clean(_root_reason(cause)))
        return CallError("connection closed")

    def _said(self, error: openai.APIStatusError) -> str:
        """The server's own words; SDK and servers wrap them in several ways."""
        body: Any = error.body
        for name in ("error", "message", "detail"):
            if isinstance(body, Mapping) and name in body:
                body = body[name]
        return self.clean(str(body or error.message))

    def clean(self, text: str, limit: int = 200) -> str:
        """Words of a stranger, fit for one line on a terminal."""
        printable = "".join(c if c.isprintable() else " " for c in self._redacted(text))
        return " ".join(printable.split())[:limit]

    def _redacted(self, text: str) -> str:
        return text.replace(self._key, "[key]") if self._key else text

    async def offered(self) -> list[str]:
        """Names of the server's models; none where it does not say."""
        try:
            async with asyncio.timeout(min(self._timeout, 5)):
                raw = await self._client.models.with_raw_response.list(extra_headers=self._headers)
            return [self.clean(model.id, 80) for model in _Models.model_validate_json(raw.content).data]
        except (TimeoutError, openai.OpenAIError, ValidationError):
            return []


@cache
def _certificates() -> ssl.SSLContext:
    """Those we trust; reading them takes longer than many a call."""
    return httpx2.create_ssl_context()


def _lenient(shape: type[Shape], value: Any) -> Shape | None:
    try:
        return shape.model_validate(value)
    except ValidationError:
        return None


def _alternatives(logprobs: _Logprobs | None) -> list[_Token]:
    """At the first token that is not white space."""
    for position in logprobs.content if logprobs else []:
        if position.token.strip():
            return position.top_logprobs or [_Token(token=position.token, logprob=position.logprob)]
    return []


def _without_logprobs(body: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in body.items() if name not in ("logprobs", "top_logprobs")}


def _with_new_name(body: dict[str, Any]) -> dict[str, Any]:
    return {("max_completion_tokens" if name == "max_tokens" else name): value for name, value in body.items()}


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _root_reason(error: BaseException) -> str:
    """What the operating system says, at the bottom of the exceptions of four libraries."""
    reason, at = "", 0
    below: BaseException | None = error
    while below is not None and at < 20:
        if isinstance(below, OSError):
            own = isinstance(below, socket.gaierror) or not below.errno  # of the resolver, which numbers otherwise
            reason = (below.strerror or str(below)) if own else os.strerror(below.errno or 0)
        below, at = below.__cause__ or below.__context__, at + 1
    return reason or str(error)
