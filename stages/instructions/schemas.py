"""Schemas of instruction data: from one row, as a file has it, to an instruction, or the reason why not."""

from collections.abc import Callable, Mapping
from typing import Any

from stages.instructions.instruction import Instruction, Turn
from stages.instructions.raw_files import RepeatedKeys, parse_json

Row = Mapping[str, Any]
Clean = Callable[[str], str]

SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
}

# What the formats call their speakers: OpenAI's `messages`, ShareGPT's `conversations`.
ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "tool": "tool",
    "function": "tool",
    "function_call": "tool",
    "observation": "tool",
}

SHOWN = 40
"""Characters of a text from the data that a reason shows."""


class RowError(Exception):
    """Why a row cannot be used."""


def _kind_of(value: object) -> str:
    names = {"NoneType": "null", "str": "text", "dict": "an object", "RepeatedKeys": "an object", "list": "a list"}
    return names.get(type(value).__name__, type(value).__name__)


def shown(text: str) -> str:
    r"""A text from the data as reasons and figures show it: short, and printable.

    >>> shown("a\ud83d")
    'a\\ud83d'
    """
    return repr(text if len(text) <= SHOWN else f"{text[:SHOWN]}...")[1:-1]


def _text(value: object, name: str, clean: Clean) -> str:
    if not isinstance(value, str):
        raise RowError(f"'{name}' is {'missing' if value is None else _kind_of(value) + ', not text'}")
    if "\0" in value:
        raise RowError(f"'{name}' holds a NUL character, which is not text")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise RowError(f"'{name}' holds half a surrogate pair, which is not text") from None
    return clean(value)


def _field(row: Row, names: tuple[str, ...], clean: Clean, *, may_be_empty: bool = False) -> str:
    """The text under the first of `names` that the row has, an empty one only if no other has any."""
    there = [name for name in names if row.get(name) is not None]
    name = next((name for name in there if row[name]), there[0] if there else names[0])
    if may_be_empty and row.get(name) is None:
        return ""
    text = _text(row.get(name), name, clean)
    if not may_be_empty and not text.strip():
        raise RowError(f"'{name}' is empty")
    return text


# ---- one turn


def _alpaca(row: Row, clean: Clean) -> Instruction:
    return Instruction(
        instruction=_field(row, ("instruction",), clean),
        response=_field(row, ("output", "response"), clean, may_be_empty=_has(row, ("output", "response"))),
        input=_field(row, ("input", "context"), clean, may_be_empty=True),
        system=_field(row, ("system",), clean, may_be_empty=True),
    )


def _prompt_completion(row: Row, clean: Clean) -> Instruction:
    prompt, completion = row.get("prompt"), next((row[k] for k in ("completion", "response") if k in row), None)
    if isinstance(prompt, list) and isinstance(completion, list):
        return _with_system(row, _conversation([*prompt, *completion], "role", "content", clean), clean)
    return Instruction(
        instruction=_field(row, ("prompt",), clean),
        response=_field(row, ("completion", "response"), clean, may_be_empty=_has(row, ("completion", "response"))),
        system=_field(row, ("system",), clean, may_be_empty=True),
    )


def _has(row: Row, names: tuple[str, ...]) -> bool:
    return any(row.get(name) is not None for name in names)


# ---- conversations


def _messages(row: Row, clean: Clean) -> Instruction:
    return _conversation(_list(row.get("messages")), "role", "content", clean)


def _sharegpt(row: Row, clean: Clean) -> Instruction:
    messages = _list(row.get("conversations"))
    openai = isinstance(messages[0], dict) and "from" not in messages[0]
    keys = ("role", "content") if openai else ("from", "value")
    return _with_system(row, _conversation(messages, *keys, clean), clean)


def _with_system(row: Row, conversation: Instruction, clean: Clean) -> Instruction:
    """The system message may stand in the row, beside the messages."""
    system = _field(row, ("system",), clean, may_be_empty=True)
    if system and conversation.system:
        raise RowError("two system messages")
    return conversation._replace(system=system or conversation.system)


def _list(messages: object) -> list[Any]:
    if isinstance(messages, str):  # a CSV holds them as JSON
        try:
            messages = parse_json(messages)
        except ValueError as error:
            raise RowError(f"messages are broken JSON: {error}") from None
    if not isinstance(messages, list) or not messages:
        raise RowError("no messages" if not messages else f"messages are {_kind_of(messages)}, not a list")
    return messages


def _conversation(messages: list[Any], role_key: str, text_key: str, clean: Clean) -> Instruction:
    """An optional system message, then user and assistant in turn; the last word is the assistant's."""
    spoken = [_message(message, role_key, text_key, clean) for message in messages]
    system = spoken.pop(0)[1] if spoken[0][0] == "system" else ""
    for at, (role, text) in enumerate(spoken):
        expected = ("user", "assistant")[at % 2]
        if role != expected:
            raise RowError(f"roles out of turn: message {at + 1} is the {role}'s, not the {expected}'s")
        if not text.strip() and at < len(spoken) - 1:
            raise RowError(f"'{text_key}' is empty")
    if len(spoken) % 2 or not spoken:
        raise RowError("no response at the end: the last message is not the assistant's")
    turns = tuple(Turn(spoken[at][1], spoken[at + 1][1]) for at in range(0, len(spoken), 2))
    return Instruction(turns[-1].user, turns[-1].response, system=system, history=turns[:-1])


def _message(message: object, role_key: str, text_key: str, clean: Clean) -> tuple[str, str]:
    if not isinstance(message, dict):
        raise RowError(f"a message is {_kind_of(message)}, not an object")
    _refuse_repeated(message)
    name = message.get(role_key)
    role = ROLES.get(name.lower()) if isinstance(name, str) else None
    if role is None:
        raise RowError("unknown role: " + (f"'{shown(name)}'" if isinstance(name, str) else _kind_of(name)))
    if role == "tool" or message.get("tool_calls") or message.get("function_call"):
        raise RowError("tool message")
    if message.get("weight") == 0:
        raise RowError("message of weight 0")
    content = message.get(text_key)
    if isinstance(content, list):  # OpenAI's content parts
        if not all(isinstance(part, dict) and part.get("type") == "text" for part in content):
            raise RowError("message with parts that are not text")
        for part in content:
            _refuse_repeated(part)
        return role, clean("".join(_text(part.get("text"), "text", str) for part in content))
    return role, _text(content, text_key, clean)


def _refuse_repeated(row: Row) -> None:
    if isinstance(row, RepeatedKeys):
        raise RowError(f"key twice: '{shown(row.repeated)}'")


# ---- from a row to a schema

SCHEMAS: dict[str, Callable[[Row, Clean], Instruction]] = {
    "messages": _messages,
    "sharegpt": _sharegpt,
    "alpaca": _alpaca,
    "prompt_completion": _prompt_completion,
}

MARKS = {
    "messages": ({"messages"},),
    "sharegpt": ({"conversations"},),
    "alpaca": ({"instruction", "output"}, {"instruction", "response"}),
    "prompt_completion": ({"prompt", "completion"}, {"prompt", "response"}),
}
"""Keys by which a schema is recognised."""

READ_KEYS = {
    "messages": {"messages"},
    "sharegpt": {"conversations", "system"},
    "alpaca": {"instruction", "input", "context", "output", "response", "system"},
    "prompt_completion": {"prompt", "completion", "response", "system"},
}
"""Keys that a schema reads, beside `category` and `split`."""

FIELDS = sorted({"category", "split"}.union(*READ_KEYS.values()))


def recognise(row: object) -> str | None:
    """The schema whose marks a row bears, in the order of SCHEMAS."""
    keys = row.keys() if isinstance(row, dict) else set()
    return next((name for name in SCHEMAS if any(mark <= keys for mark in MARKS[name])), None)


def parse(value: object, schema: str, clean: Clean, *, allow_empty_response: bool) -> Instruction:
    """The instruction in a row of `schema`, without its place.

    Raises:
        RowError: the row cannot be used.
    """
    if not isinstance(value, dict):
        raise RowError(f"expected an object, got {_kind_of(value)}")
    _refuse_repeated(value)
    instruction = SCHEMAS[schema](value, clean)
    if not allow_empty_response and not instruction.response.strip():
        raise RowError("empty response")
    category = _field(value, ("category",), str.strip, may_be_empty=True)
    split = _field(value, ("split",), str.strip, may_be_empty=True)
    if split and split.lower() not in SPLIT_NAMES:
        raise RowError(f"unknown split: '{shown(split)}' is none of {', '.join(SPLIT_NAMES)}")
    return instruction._replace(category=category or None, split=SPLIT_NAMES[split.lower()] if split else None)
