"""Evals that a model grades: ModelBasedClassify of openai/evals (elsuite/modelgraded/classify*.py, 3.0.1).

A specification in modelgraded/*.yaml has a prompt with places for the sample's fields and the answer
(`input_outputs`), the choices that the grader has, and, often, a score for each. What stands behind the prompt to say
how to answer (`eval_type`) is in words of our own.
"""

import string
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from stages.benchmarks.benchmark import Message, Row, Settings, Subject
from stages.benchmarks.evals_registry import Eval, chat_of, read_yaml
from stages.model.endpoint import EndpointParams, Reply, Request
from stages.pipeline.errors import UserError

INVALID = "__invalid__"
"""The choice of a reply in which none can be read; it has the lowest score, as in openai/evals."""

MAX_TOKENS = 1024
"""Of an answer and of the grader's, where the eval says nothing."""

ANSWER_WORDS = {
    "classify": "Answer with one of {choices}, without quotes or punctuation, and nothing else.",
    "classify_cot": (
        "On the first line answer with one of {choices}, without quotes or punctuation. "
        "Give your reasons step by step from the next line on."
    ),
    "cot_classify": (
        "Reason step by step first, and do not name your choice before you have. Then write one of {choices}, without "
        "quotes or punctuation, alone on the last line.\n\nReasoning:"
    ),
    "cot_classify_jp": (
        "まず順を追って推論を書いてください。最後の行には{choices}のうち一つだけを、引用符や句読点なしで書いてください。\n\n推論:"
    ),
}

MATCHES: Mapping[str, Callable[[str, str], bool]] = {
    "include": lambda line, choice: line in choice,  # in this order in openai/evals, too
    "exact": lambda line, choice: line == choice,
    "endswith": lambda line, choice: line.endswith(choice),
    "starts_or_endswith": lambda line, choice: line.startswith(choice) or line.endswith(choice),
}

_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


class Spec(NamedTuple):
    """How a model grades."""

    prompt: list[Message]
    choices: list[str]
    scores: dict[str, float] | None
    inputs: dict[str, str]
    """Field of the answer in the prompt, by the field of the sample that is asked."""
    eval_type: str
    """Where the choice stands: first, or after the reasoning (cot_classify)."""
    match: Callable[[str, str], bool]
    output_template: str
    """Of one of several answers in the prompt."""


def read_spec(task: Eval) -> Spec:
    """The specification that an eval names, with what the eval itself sets.

    Raises:
        UserError: it is not there, or is not one of openai/evals.
    """
    args, name = task.args, str(task.args.get("modelgraded_spec"))
    where = f"{task.folder / 'modelgraded'}: {name}"
    given = read_yaml(task.folder / "modelgraded").get(name)
    if given is None:
        raise UserError(f"{where}: not there, and {task.name} needs it; copy the registry's modelgraded/, too")
    count, own_type = args.get("multicomp_n", 1), args.get("eval_type")
    try:
        choices = _choices(given["choice_strings"], count)
        prompt = given["prompt"]
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else [dict(one) for one in prompt]
        if own_type:
            words = ANSWER_WORDS[own_type].format(choices=" or ".join(f'"{choice}"' for choice in choices))
            messages[-1]["content"] += f"\n\n{words}"
        scores = given.get("choice_scores")
        if scores == "from_strings":
            scores = {choice: float(choice) for choice in choices}
        return Spec(
            messages,
            choices,
            scores and {str(choice): float(scores[choice]) for choice in choices},
            dict(given["input_outputs"]),
            given.get("eval_type") or own_type or "classify",
            MATCHES[args.get("match_fn") or "starts_or_endswith"],
            str(given.get("output_template") or ("" if count == 1 else given["output_template"])),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{where}: not a specification as openai/evals has it ({error!r}); mend it") from None


def _choices(given: Any, count: int) -> list[str]:
    letters = {
        "from_n": [str(number + 1) for number in range(count)],
        "from_n_abc": list(string.ascii_lowercase[:count]),
        "from_n_ABC": list(string.ascii_uppercase[:count]),
    }
    return letters[given] if isinstance(given, str) and given in letters else [str(choice) for choice in given]


def grade(
    task: Eval, rows: Sequence[dict[str, Any]], subject: Subject, endpoint: EndpointParams, settings: Settings
) -> tuple[dict[str, list[float]], list[Row]]:
    """What each row gives, by metric: `score`, `choice/<choice>` (its share) and, of labelled samples, `metascore`.

    Raises:
        UserError: a sample lacks a field, or calls could not be made.
    """
    from stages.benchmarks.judged import ask

    spec = read_spec(task)
    answered = _with_answers(task, spec, rows, subject)
    limit = int((task.args.get("eval_kwargs") or {}).get("max_tokens", MAX_TOKENS))
    more = task.args.get("modelgraded_spec_args") or {}
    requests = [
        Request(
            [
                {**message, "content": _filled(message["content"], {**answers, **more}, f"{task.name}: {number}")}
                for message in spec.prompt
            ],
            limit,
            {"temperature": 0},
        )
        for number, answers in enumerate(answered)
    ]
    said = ask(requests, endpoint, lambda reply: read_choice(reply, spec), label=task.name, again=None)
    choices = [choice or INVALID for choice, _ in said]
    values: dict[str, list[float]] = {}
    if spec.scores is not None:
        scores = spec.scores | {INVALID: min(spec.scores.values())}
        values["score"] = [scores[choice] for choice in choices]
    if task.args.get("metaeval"):
        values["metascore"] = [float(c == str(row.get("choice"))) for c, row in zip(choices, rows, strict=True)]
    values |= {f"choice/{name}": [float(choice == name) for choice in choices] for name in (*spec.choices, INVALID)}
    return values, _rows(task, spec, rows, answered, subject.name, values.get("score"))


def _with_answers(task: Eval, spec: Spec, rows: Sequence[dict[str, Any]], subject: Subject) -> list[dict[str, Any]]:
    """The fields that a prompt has places for: the sample's, chats as text, and the subject's answers."""
    how = {"max_tokens": MAX_TOKENS, "temperature": 0.0} | (task.args.get("sample_kwargs") or {})
    count = int(task.args.get("multicomp_n", 1))
    filled = [{key: _as_text(value) for key, value in row.items()} | {"n": count} for row in rows]
    for asked, answer in spec.inputs.items():
        wanting = [at for at, row in enumerate(rows) if answer not in row]
        chats = [chat_of(rows[at].get(asked), f"{task.samples}: row {at + 1}: {asked}") for at in wanting]
        samples = subject.answer(
            chats, max_new_tokens=int(how["max_tokens"]), temperature=float(how["temperature"]), num_samples=count
        )
        for at, own in zip(wanting, samples, strict=True):
            filled[at][answer] = own[0] if count == 1 else _listed(own, spec.output_template)
    return filled


def _as_text(value: Any) -> Any:
    """A chat as openai/evals shows it to a grader: a single message alone, several behind their roles."""
    if not (isinstance(value, list) and value and all(isinstance(m, dict) and "content" in m for m in value)):
        return value
    if len(value) == 1:
        return value[0]["content"]
    prefixes = {"system": "", "example_user": "User: ", "example_assistant": "Assistant: "}
    speakers = [str(message.get("name", message.get("role"))) for message in value]
    lines = [
        f"{prefixes.get(speaker, f'{speaker.capitalize()}: ')}{message['content']}\n"
        for speaker, message in zip(speakers, value, strict=True)
    ]
    return "".join(lines).lstrip()


def _listed(samples: Sequence[str], template: str) -> str:
    """Several answers as one text."""
    return "".join(
        template.format(
            i=number + 1,
            i_abc=string.ascii_lowercase[number % 26],
            i_ABC=string.ascii_uppercase[number % 26],
            output=sample,
            n=len(samples),
        )
        for number, sample in enumerate(samples)
    ).strip()


def _filled(template: str, fields: Mapping[str, Any], where: str) -> str:
    try:
        return template.format(**fields)
    except (KeyError, IndexError, ValueError, AttributeError) as error:
        raise UserError(f"evals/{where}: the grader's prompt wants a field that the sample lacks ({error})") from None


def read_choice(reply: Reply, spec: Spec) -> str | None:
    """The first choice on a line that has one: from the last line up where the reasoning comes first."""
    lines = reply.text.strip().split("\n")
    for line in reversed(lines) if spec.eval_type.startswith("cot_classify") else lines:
        plain = line.strip().translate(_NO_PUNCTUATION)
        found = next((choice for choice in spec.choices if spec.match(plain, choice)), None) if plain else None
        if found is not None:
            return found
    return None


def _rows(
    task: Eval,
    spec: Spec,
    rows: Sequence[dict[str, Any]],
    answered: Sequence[dict[str, Any]],
    model: str,
    scores: Sequence[float] | None,
) -> list[Row]:
    return [
        Row(
            model=model,
            task=f"evals/{task.name}",
            id=str(number),
            prompt="\n\n".join(str(fields[asked]) for asked in spec.inputs),
            response="\n\n".join(str(fields[answer]) for answer in spec.inputs.values()),
            target=str(row.get("ideal", "")),
            score=None if scores is None else scores[number],
        )
        for number, (row, fields) in enumerate(zip(rows, answered, strict=True))
    ]
