"""An OpenAI-compatible endpoint: where a model is to be found, what it is asked, and what it says.

Usage: `answered(requests, endpoint, CallStore(), where="judge.endpoints.gpt", label="gpt", pace=Pace(8, 0, 60, 5))` of
`stages.model.calling` gives one outcome for each request, in order: a `Reply` (text, finish reason, tokens), or a
`Refusal` where the server will not take that request. `Request([{"role": "user", "content": "Hi"}], max_tokens=64,
options={"temperature": 0})` is one chat; `endpoint` is the `EndpointParams` of params.yaml. Replies are taken from the
store (`stages.model.calls`) where it has them; others are asked for and put into it as they arrive, so a run that fails
or is killed goes on where it stood. Calls that cannot be made end in a `UserError` with the counts, after everything
else was asked; Ctrl-C and SIGTERM in a `StoppedError`. This module itself is light: a script may import it at its top.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, model_validator

TOP_LOGPROBS = 20
"""Alternatives to the first token; the most that OpenAI gives."""

_OURS = {"model", "messages", "stream", "n", "logprobs", "top_logprobs"}
_SECRETS = re.compile(r"api[-_]?key|authorization|password|secret|headers", re.IGNORECASE)


class EndpointParams(BaseModel):
    """Where a model is to be found. The key itself is never a parameter."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    base_url: str
    """As in http://127.0.0.1:8000/v1."""
    model: str = Field(min_length=1)
    """As the server names it."""
    api_key_env: str | None
    """Name of the environment variable that holds the key; null: the endpoint wants none."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Further fields of every request (temperature, seed, max_tokens ...); null takes away what a stage would send."""
    concurrency: int = Field(default=8, ge=1)
    """Calls under way at once."""
    requests_per_minute: float = Field(default=0, ge=0, allow_inf_nan=False)
    """Their starts, spread evenly; 0: no limit."""
    timeout: float = Field(default=120, gt=0, allow_inf_nan=False)
    """Seconds for one call, from the connection to the last byte."""
    retries: int = Field(default=6, ge=0)
    """Further tries of a call that failed."""

    @property
    def pace(self) -> "Pace":
        """How hard it is asked."""
        return Pace(self.concurrency, self.requests_per_minute, self.timeout, self.retries)

    @model_validator(mode="before")
    @classmethod
    def _hold_no_secret(cls, given: Any) -> Any:
        """Check before the fields are, since a message about a field shows its value."""
        if isinstance(given, Mapping):
            env, options = given.get("api_key_env"), given.get("options")
            if isinstance(env, str) and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", env):
                raise ValueError("api_key_env takes the name of an environment variable, never a key")
            if isinstance(options, Mapping) and _names_secret(options):
                raise ValueError(
                    "options must hold no key, password or header; put the key into an environment variable"
                )
            if isinstance(given.get("base_url"), str):
                return {**given, "base_url": _checked_url(given["base_url"])}
        return given

    @model_validator(mode="after")
    def _take_no_reserved_option(self) -> Self:
        reserved = sorted(_OURS & set(self.options))
        if reserved:
            raise ValueError(f"options must not set {', '.join(reserved)}")
        try:
            json.dumps(self.options, allow_nan=False)
        except (TypeError, ValueError):
            raise ValueError("options must be JSON values") from None
        return self


def _names_secret(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(_SECRETS.search(str(name)) or _names_secret(inner) for name, inner in value.items())
    return isinstance(value, list) and any(map(_names_secret, value))


def _checked_url(text: str) -> str:
    text = text.strip().rstrip("/")
    try:
        parts = urlsplit(text)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise ValueError("base_url must be as in http://127.0.0.1:8000/v1 or https://api.openai.com/v1")
    if parts.username is not None or parts.password is not None:
        raise ValueError(
            "base_url must hold no user and no password; name the key's environment variable in api_key_env"
        )
    if parts.query or parts.fragment or "?" in text or "#" in text:
        raise ValueError("base_url must end with its path, as in .../v1; keys have no place behind a question mark")
    return text


@dataclass(frozen=True)
class Request:
    """One chat to be answered."""

    messages: Sequence[Mapping[str, str]]
    """Each with `role` and `content`."""
    max_tokens: int
    """Of the answer."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Further fields of the request; those of the endpoint's parameters come first."""
    logprobs: bool = False
    """Whether the first token's alternatives are wanted, where the endpoint gives them."""
    repeat: int = 0
    """Another number is another call, where the store would answer."""
    attempt: int = 0
    """The same, for a reply that was of no use."""

    def body(self, endpoint: EndpointParams) -> dict[str, Any]:
        """What is sent."""
        wanted = {"logprobs": True, "top_logprobs": TOP_LOGPROBS} if self.logprobs else {}
        fields: dict[str, Any] = {
            "model": endpoint.model,
            "messages": [dict(message) for message in self.messages],
            "max_tokens": self.max_tokens,
            **self.options,
            **endpoint.options,
            **wanted,
        }
        return {name: value for name, value in fields.items() if value is not None}

    def key(self, endpoint: EndpointParams) -> str:
        """What it is kept under: the same for the same call."""
        rest = {"base_url": endpoint.base_url, "repeat": self.repeat, "attempt": self.attempt}
        return content_key({"body": self.body(endpoint), **rest})


class Reply(NamedTuple):
    """A model's word."""

    text: str
    finish_reason: str
    """stop: the model ended it; length: it was cut; or what the server says."""
    first_token: list[tuple[str, float]] | None
    """Likeliest first tokens and their log probabilities; None where the endpoint gives none."""
    prompt_tokens: int
    completion_tokens: int


class Refusal(NamedTuple):
    """A request that the server will not take, as one too long for the model; asking again would change nothing."""

    reason: str


Outcome = Reply | Refusal


class Pace(NamedTuple):
    """How hard an endpoint is asked."""

    concurrency: int
    """Calls under way at once."""
    requests_per_minute: float
    """Their starts, spread evenly; 0: no limit."""
    timeout: float
    """Seconds for one call, from the connection to the last byte."""
    retries: int
    """Further tries of a call that failed."""
    first_wait: float = 0.5
    """Seconds before the second try; doubled with each further one."""


class Answers(NamedTuple):
    """Outcomes in the order of the requests, and where they came from."""

    outcomes: list[Outcome]
    made: int
    """Requests that were sent; several tries of one count once."""
    stored: int
    """Requests that the store, or an equal request beside them, answered."""

    def line(self) -> str:
        """The costs in words."""
        replies = [outcome for outcome in self.outcomes if isinstance(outcome, Reply)]
        tokens = sum(reply.prompt_tokens for reply in replies), sum(reply.completion_tokens for reply in replies)
        return (
            f"{self.made} calls made, {self.stored} answered from the store, "
            f"{tokens[0]:,} tokens read and {tokens[1]:,} written"
        )


def content_key(content: Any) -> str:
    """Hex SHA-256 of a JSON value; the order of keys does not count.

    >>> content_key({"a": 1, "b": 2}) == content_key({"b": 2, "a": 1})
    True
    """
    text = json.dumps(content, sort_keys=True, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
