"""What the judge of benchmarks, a model behind an endpoint, is asked, and what is read in its replies.

Texts to be judged stand between marked lines, as in stages/judging/endpoint_judge.py, so that none can close its own.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, TypeVar

from stages.benchmarks.benchmark import Figure, Message, Settings
from stages.benchmarks.estimates import estimate
from stages.judging.endpoint_judge import SYSTEM, shorten
from stages.model.calling import answered
from stages.model.calls import CallStore
from stages.model.endpoint import Answers, EndpointParams, Outcome, Reply, Request
from stages.pipeline.errors import UserError
from stages.pipeline.progress import say

WHERE = "params.yaml: benchmark.judge"
EXAMPLE = "{base_url: http://127.0.0.1:8000/v1, model: name, api_key_env: null}"
"""Of a judge."""

Value = TypeVar("Value")
Said = tuple[Value | None, str]
"""What was read in a reply, None where it cannot be; and the reply's words."""


class Text(NamedTuple):
    """One text for the judge's eyes."""

    title: str
    text: str


def judge_of(settings: Settings, name: str) -> EndpointParams:
    """The judge that benchmark `name` needs.

    Raises:
        UserError: none is configured.
    """
    if settings.judge is None:
        raise UserError(f"params.yaml: benchmark.tasks: {name} needs a judge; set benchmark.judge, as in {EXAMPLE}")
    return settings.judge


def marked(texts: Sequence[Text], task: str) -> list[Message]:
    """A chat with the texts between marked lines; the task comes last, since what is read last is followed best."""
    shortened = [Text(title, shorten(text)) for title, text in texts]
    mark = hashlib.sha256("\0".join(text for _, text in shortened).encode()).hexdigest()[:12]
    shown = [f"-----BEGIN {title} {mark}-----\n{text}\n-----END {title} {mark}-----" for title, text in shortened]
    return [
        {"role": "system", "content": SYSTEM.format(mark=mark)},
        {"role": "user", "content": "\n\n".join([*shown, task])},
    ]


def ask(
    requests: Sequence[Request],
    endpoint: EndpointParams,
    read: Callable[[Reply], Value | None],
    *,
    label: str,
    again: str | None,
) -> list[Said[Value]]:
    """What each reply says; one that cannot be read is asked for once more, with the words `again` behind it.

    Calls that were made are kept (stages/model/calls.py) and never made again.

    Raises:
        UserError: calls could not be made; what was answered is kept.
    """
    store = CallStore()
    first = answered(requests, endpoint, store, where=WHERE, label=label)
    said = [_said(outcome, read) for outcome in first.outcomes]
    unread = [
        at for at, outcome in enumerate(first.outcomes) if said[at][0] is None and isinstance(outcome, Reply) and again
    ]
    reminded = [_reminded(requests[at], again or "") for at in unread]
    second = answered(reminded, endpoint, store, where=WHERE, label=f"{label}, asked once more")
    for at, outcome in zip(unread, second.outcomes, strict=True):
        said[at] = _said(outcome, read)
    if requests:
        both = Answers(first.outcomes + second.outcomes, first.made + second.made, first.stored + second.stored)
        unreadable = sum(value is None for value, _ in said)
        say(f"  {label}: {len(said)} verdicts of {endpoint.model}, {unreadable} of them unreadable: {both.line()}")
    return said


def _said(outcome: Outcome, read: Callable[[Reply], Value | None]) -> Said[Value]:
    if isinstance(outcome, Reply):
        return read(outcome), outcome.text
    return None, f"refused: {outcome.reason}"


def _reminded(request: Request, again: str) -> Request:
    *before, last = request.messages
    return replace(request, messages=[*before, {**last, "content": f"{last['content']}\n\n{again}"}], attempt=1)


def figures_of(values: Mapping[str, Sequence[float]], settings: Settings, **about: Any) -> list[Figure]:
    """A figure for each metric: the mean of what its rows gave; `about` has the other fields of `Figure`."""
    figures = []
    for metric, numbers in values.items():
        found = estimate(numbers, resamples=settings.resamples, seed=settings.seed)
        low, high = found.limits(settings.confidence)
        figures.append(
            Figure(metric=metric, value=found.value, low=low, high=high, n=found.n, library="onset", **about)
        )
    return figures
