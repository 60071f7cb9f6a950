"""Schemas: from a row, as a file has it, to an instruction, or the reason why not."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from stages.instructions.cleaning import WHITESPACE
from stages.instructions.instruction import Instruction, Turn
from stages.instructions.raw_files import parse_json
from stages.instructions.schemas import READ_KEYS, SCHEMAS, RowError, parse, recognise

TURNS = [("user", "Hi!"), ("assistant", "Hello."), ("user", "Add 1 and 2."), ("assistant", "3")]
OPENAI = [{"role": role, "content": text} for role, text in TURNS]
IN_PARTS = [
    {"role": role, "content": [{"type": "text", "text": text[:2]}, {"type": "text", "text": text[2:]}]}
    for role, text in TURNS
]
SHAREGPT = [{"from": {"user": "human", "assistant": "gpt"}[role], "value": text} for role, text in TURNS]
SYSTEM = {"role": "system", "content": "Be brief."}
CONVERSATION = Instruction("Add 1 and 2.", "3", history=(Turn("Hi!", "Hello."),))
BRIEFLY = CONVERSATION._replace(system="Be brief.")
LONE = Instruction("Add.", "3")
WHOLE = Instruction("Add.", "3", input="1 2", system="Be brief.")


def read(row: object, schema: str, *, whitespace: str = "strip", allow_empty_response: bool = False) -> Instruction:
    return parse(row, schema, WHITESPACE[whitespace], allow_empty_response=allow_empty_response)


ROWS: list[tuple[str, dict[str, Any], Instruction]] = [
    ("alpaca", {"instruction": "Add.", "output": "3"}, LONE),
    ("alpaca", {"instruction": "Add.", "input": None, "output": "3", "system": ""}, LONE),
    ("alpaca", {"instruction": "Add.", "input": "1 2", "output": "3", "system": "Be brief."}, WHOLE),
    ("alpaca", {"instruction": "Add.", "context": "1 2", "response": "3", "system": "Be brief."}, WHOLE),
    (
        "alpaca",
        {"instruction": "Add.", "input": "", "output": None, "context": "1 2", "response": "3"},
        WHOLE._replace(system=""),
    ),
    ("prompt_completion", {"prompt": "Add.", "completion": "3"}, LONE),
    ("prompt_completion", {"prompt": "Add.", "response": "3", "system": "Be brief."}, WHOLE._replace(input="")),
    ("prompt_completion", {"prompt": OPENAI[:3], "completion": OPENAI[3:]}, CONVERSATION),
    ("prompt_completion", {"prompt": [SYSTEM, *OPENAI[:3]], "completion": OPENAI[3:]}, BRIEFLY),
    ("prompt_completion", {"prompt": OPENAI[:3], "completion": OPENAI[3:], "system": "Be brief."}, BRIEFLY),
    ("messages", {"messages": OPENAI}, CONVERSATION),
    ("messages", {"messages": [SYSTEM, *OPENAI]}, BRIEFLY),
    ("messages", {"messages": [SYSTEM | {"role": "developer"}, *OPENAI]}, BRIEFLY),
    ("messages", {"messages": json.dumps([SYSTEM, *OPENAI])}, BRIEFLY),
    (
        "messages",
        {"messages": [said | {"name": "x", "tool_calls": None, "weight": 1} for said in OPENAI]},
        CONVERSATION,
    ),
    ("messages", {"messages": [said | {"role": said["role"].upper()} for said in OPENAI]}, CONVERSATION),
    ("messages", {"messages": IN_PARTS}, CONVERSATION),
    ("sharegpt", {"conversations": SHAREGPT}, CONVERSATION),
    ("sharegpt", {"conversations": SHAREGPT, "system": "Be brief."}, BRIEFLY),
    ("sharegpt", {"conversations": [{"from": "system", "value": "Be brief."}, *SHAREGPT]}, BRIEFLY),
    ("sharegpt", {"conversations": OPENAI}, CONVERSATION),
    ("sharegpt", {"conversations": json.dumps(SHAREGPT)}, CONVERSATION),
    ("sharegpt", {"conversations": json.dumps(OPENAI)}, CONVERSATION),
]


@pytest.mark.parametrize(("schema", "row", "expected"), ROWS)
def test_a_row_of_each_schema_is_recognised_and_read(schema: str, row: dict[str, Any], expected: Instruction) -> None:
    assert recognise(row) == schema
    assert row.keys() <= READ_KEYS[schema]
    assert read(row, schema) == expected


@pytest.mark.parametrize("row", [None, [], "text", 3, {}, {"instruction": "Add."}, {"text": "x"}, {"prompt": "x"}])
def test_a_row_without_the_marks_of_a_schema_is_not_recognised(row: object) -> None:
    assert recognise(row) is None


ALPACA = {"instruction": "Add.", "input": "1 2", "output": "3"}


def without(key: str) -> dict[str, str]:
    return {name: value for name, value in ALPACA.items() if name != key}


def with_message(**change: object) -> list[dict[str, object]]:
    """A conversation with something else in its first answer."""
    return [OPENAI[0], OPENAI[1] | change, *OPENAI[2:]]  # type: ignore[list-item]


LONG = "x" * 10_000_000
REJECTED: list[tuple[str, Any, str]] = [
    ("alpaca", ["Add."], "expected an object, got a list"),
    ("alpaca", "Add.", "expected an object, got text"),
    ("alpaca", 3, "expected an object, got int"),
    ("alpaca", None, "expected an object, got null"),
    ("alpaca", without("instruction"), "'instruction' is missing"),
    ("alpaca", without("output"), "'output' is missing"),
    ("alpaca", ALPACA | {"instruction": None}, "'instruction' is missing"),
    ("alpaca", ALPACA | {"output": 3}, "'output' is int, not text"),
    ("alpaca", ALPACA | {"output": b"3"}, "'output' is bytes, not text"),
    ("alpaca", ALPACA | {"input": ["1", "2"]}, "'input' is a list, not text"),
    ("alpaca", ALPACA | {"system": {}}, "'system' is an object, not text"),
    ("alpaca", ALPACA | {"category": False}, "'category' is bool, not text"),
    ("alpaca", ALPACA | {"instruction": " \n"}, "'instruction' is empty"),
    ("alpaca", ALPACA | {"output": " \n\t"}, "empty response"),
    ("alpaca", ALPACA | {"instruction": "a\ud83d"}, "'instruction' holds half a surrogate pair, which is not text"),
    ("alpaca", ALPACA | {"output": "\ude00\ud83d"}, "'output' holds half a surrogate pair, which is not text"),
    ("alpaca", ALPACA | {"input": "1\0"}, "'input' holds a NUL character, which is not text"),
    ("alpaca", ALPACA | {"category": "\0"}, "'category' holds a NUL character, which is not text"),
    ("alpaca", ALPACA | {"split": "tset"}, "unknown split: 'tset' is none of train, training, validation"),
    ("alpaca", ALPACA | {"split": 1}, "'split' is int, not text"),
    ("prompt_completion", {"prompt": "Add.", "completion": None}, "'completion' is missing"),
    ("prompt_completion", {"prompt": OPENAI[:3], "completion": "3"}, "'prompt' is a list, not text"),
    (
        "prompt_completion",
        {"prompt": [SYSTEM, *OPENAI[:3]], "completion": OPENAI[3:], "system": "x"},
        "two system messages",
    ),
    (
        "sharegpt",
        {"conversations": [{"from": "system", "value": "x"}, *SHAREGPT], "system": "y"},
        "two system messages",
    ),
    (
        "sharegpt",
        {"conversations": [{"from": "gpt", "value": "x"}, *SHAREGPT]},
        "roles out of turn: message 1 is the assistant's, not the user's",
    ),
    ("messages", {"messages": None}, "no messages"),
    ("messages", {"messages": []}, "no messages"),
    ("messages", {"messages": "[]"}, "no messages"),
    ("messages", {"messages": {"role": "user"}}, "messages are an object, not a list"),
    ("messages", {"messages": "[{"}, "messages are broken JSON: "),
    ("messages", {"messages": "[" * 100_000}, "messages are broken JSON: nested too deeply"),
    ("messages", {"messages": ["Hi!", "Hello."]}, "a message is text, not an object"),
    ("messages", {"messages": [SYSTEM]}, "no response at the end"),
    ("messages", {"messages": OPENAI[:3]}, "no response at the end"),
    ("messages", {"messages": [OPENAI[0], SYSTEM, *OPENAI[1:]]}, "roles out of turn: message 2 is the system's"),
    ("messages", {"messages": [OPENAI[0], *OPENAI[2:]]}, "roles out of turn: message 2 is the user's"),
    ("messages", {"messages": with_message(role="tool")}, "tool message"),
    ("messages", {"messages": with_message(role="function")}, "tool message"),
    ("messages", {"messages": with_message(content=None, tool_calls=[{"id": "1"}])}, "tool message"),
    ("messages", {"messages": with_message(content=None, function_call={"name": "f"})}, "tool message"),
    ("sharegpt", {"conversations": [SHAREGPT[0], {"from": "function_call", "value": "f()"}]}, "tool message"),
    ("sharegpt", {"conversations": [SHAREGPT[0], {"from": "observation", "value": "3"}]}, "tool message"),
    ("messages", {"messages": with_message(weight=0)}, "message of weight 0"),
    ("messages", {"messages": with_message(content="")}, "'content' is empty"),
    ("messages", {"messages": with_message(content=None)}, "'content' is missing"),
    ("messages", {"messages": with_message(content={"type": "text", "text": "x"})}, "'content' is an object, not text"),
    ("messages", {"messages": with_message(content=[{"type": "image_url"}])}, "message with parts that are not text"),
    ("messages", {"messages": with_message(content=["x"])}, "message with parts that are not text"),
    ("messages", {"messages": with_message(content=[{"type": "text"}])}, "'text' is missing"),
    ("messages", {"messages": with_message(role="narrator")}, "unknown role: 'narrator'"),
    ("messages", {"messages": with_message(role=None)}, "unknown role: null"),
    ("messages", {"messages": with_message(role=["assistant"])}, "unknown role: a list"),
    ("messages", {"messages": with_message(role="\ud83d")}, r"unknown role: '\ud83d'"),
    # What is shown of the data stays short.
    ("messages", {"messages": with_message(role=LONG)}, f"unknown role: '{'x' * 40}...'"),
    ("alpaca", ALPACA | {"split": LONG}, f"unknown split: '{'x' * 40}...' is none of"),
]


@pytest.mark.parametrize(("schema", "row", "reason"), REJECTED, ids=[reason for *_, reason in REJECTED])
def test_a_row_that_cannot_be_used_says_why(schema: str, row: Any, reason: str) -> None:
    with pytest.raises(RowError) as raised:
        read(row, schema)
    assert str(raised.value).startswith(reason)
    assert len(str(raised.value).encode()) < 200


@pytest.mark.parametrize(
    ("schema", "row", "key"),
    [
        ("alpaca", '{"instruction": "Add.", "output": "3", "output": "4"}', "output"),
        ("alpaca", r'{"instruction": "Add.", "output": "3", "\ud83d": 1, "\ud83d": 2}', r"\ud83d"),
        ("messages", '{"messages": [{"role": "user", "content": "Hi!", "role": "user"}]}', "role"),
        ("messages", json.dumps({"messages": '[{"role": "user", "content": "a", "role": "user"}]'}), "role"),
        ("messages", '{"messages": [{"role": "user", "content": [{"type": "text", "text": "", "text": ""}]}]}', "text"),
    ],
)
def test_a_key_that_stands_twice_is_rejected_at_any_depth(schema: str, row: str, key: str) -> None:
    with pytest.raises(RowError) as raised:
        read(parse_json(row), schema)
    assert str(raised.value) == f"key twice: '{key}'"


def test_deep_nesting_where_a_text_belongs_is_rejected_in_every_place() -> None:
    deep: Any = "x"
    for _ in range(900):  # what the parser still reads
        deep = [deep]
    for schema, row, _ in ROWS:
        for key in row:
            with pytest.raises(RowError):
                read(row | {key: deep}, schema)
    for key in ("role", "content"):
        with pytest.raises(RowError):
            read({"messages": with_message(**{key: deep})}, "messages")


@pytest.mark.parametrize("schema", SCHEMAS)
def test_only_the_last_response_may_be_empty_and_only_where_it_is_allowed(schema: str) -> None:
    rows: dict[str, dict[str, Any]] = {
        "alpaca": {"instruction": "Add.", "output": " "},
        "prompt_completion": {"prompt": "Add.", "completion": " "},
        "messages": {"messages": [*OPENAI[:3], OPENAI[3] | {"content": " "}]},
        "sharegpt": {"conversations": [*SHAREGPT[:3], SHAREGPT[3] | {"value": " "}]},
    }
    row = rows[schema]
    assert read(row, schema, allow_empty_response=True).response == ""
    with pytest.raises(RowError, match=r"^empty response$"):
        read(row, schema)
    with pytest.raises(RowError, match="empty"):
        read({"messages": with_message(content="")}, "messages", allow_empty_response=True)
    with pytest.raises(RowError, match="'output' is missing"):
        read({"instruction": "Add.", "output": None}, "alpaca", allow_empty_response=True)


@pytest.mark.parametrize(
    ("split", "expected"),
    [
        ("train", "train"),
        (" Training ", "train"),
        ("validation", "validation"),
        ("VALID", "validation"),
        ("val", "validation"),
        ("dev", "validation"),
        ("Test", "test"),
        ("", None),
        ("  ", None),
        (None, None),
    ],
)
@pytest.mark.parametrize(("schema", "row"), [(schema, row) for schema, row, _ in ROWS if "system" not in row][:6])
def test_a_row_may_name_its_split_and_category(
    schema: str, row: dict[str, Any], split: str | None, expected: str | None
) -> None:
    found = read(row | {"split": split, "category": f" {split or ''} "}, schema, whitespace="keep")
    assert (found.split, found.category) == (expected, (split or "").strip() or None)


MESSY = " \r\n\r\n\r\na  b \t\r\nc\rd\u2028e\n\n \nf\u00a0\n "
CLEAN = {"strip": MESSY.strip(), "normalize": "a  b\nc\nd\ne\n\nf", "keep": MESSY}


@pytest.mark.parametrize("whitespace", WHITESPACE)
def test_white_space_is_treated_alike_in_every_text(whitespace: str) -> None:
    clean = CLEAN[whitespace]
    texts = dict.fromkeys(("instruction", "input", "output", "system"), MESSY)
    assert read(texts, "alpaca", whitespace=whitespace) == Instruction(clean, clean, clean, clean)
    # Parts are joined before they are cleaned: white space between them belongs to the text.
    parts = [{"type": "text", "text": MESSY[:9]}, {"type": "text", "text": MESSY[9:]}]
    messages = [{"role": role, "content": parts} for role in ("system", *["user", "assistant"] * 2)]
    expected = Instruction(clean, clean, system=clean, history=(Turn(clean, clean),))
    assert read({"messages": messages}, "messages", whitespace=whitespace) == expected


@pytest.mark.parametrize("clean", WHITESPACE.values(), ids=WHITESPACE)
def test_ten_megabytes_of_white_space_take_no_time(clean: Callable[[str], str]) -> None:
    # A regular expression that tries each space as the beginning of the run takes hours.
    text = f"a{' ' * 10_000_000}b"
    assert clean(text) == text
