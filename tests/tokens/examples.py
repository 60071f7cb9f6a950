"""Examples made up for tests, and arrays laid out the plainest way."""

from collections.abc import Sequence

import numpy as np

from stages.tokens.labels import IGNORE_INDEX, Examples

END = 2
"""End-of-text."""


def make_examples(tokens: Sequence[Sequence[int]], in_response: Sequence[Sequence[bool]]) -> Examples:
    """Examples from their tokens."""
    offsets = np.cumsum([0, *map(len, tokens)])
    return Examples(
        tokens=np.array([token for example in tokens for token in example], dtype=np.int32),
        in_response=np.array([flag for example in in_response for flag in example], dtype=bool),
        offsets=offsets,
        truncated=np.zeros(len(tokens), dtype=bool),
        kept=np.arange(len(tokens)),
    )


def make_single_turns(tokens: Sequence[Sequence[int]], prompts: Sequence[int]) -> Examples:
    """Examples of so many tokens of prompt, and then a response."""
    return make_examples(
        tokens, [[at >= prompt for at in range(len(example))] for example, prompt in zip(tokens, prompts, strict=True)]
    )


def naive_arrays(examples: Examples, row_of: Sequence[int], mask_instruction: bool) -> dict[str, list[list[object]]]:
    """Position by position."""
    rows: dict[str, list[list[object]]] = {
        name: [[] for _ in range(max(row_of) + 1)]
        for name in ("input_ids", "labels", "next_ids", "in_response", "example")
    }
    for number, row in enumerate(row_of):
        for at in range(examples.offsets[number], examples.offsets[number + 1] - 1):
            wanted = examples.in_response[at + 1] or not mask_instruction
            rows["input_ids"][row].append(examples.tokens[at])
            rows["labels"][row].append(examples.tokens[at + 1] if wanted else IGNORE_INDEX)
            rows["next_ids"][row].append(examples.tokens[at + 1])
            rows["in_response"][row].append(examples.in_response[at + 1])
            rows["example"][row].append(number)
    width = max(map(len, rows["example"]))
    padding = {"input_ids": END, "labels": IGNORE_INDEX, "next_ids": IGNORE_INDEX, "in_response": False, "example": -1}
    return {name: [row + [padding[name]] * (width - len(row)) for row in of_name] for name, of_name in rows.items()}
