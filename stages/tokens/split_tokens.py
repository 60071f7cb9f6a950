"""One split, from prompts to collated arrays."""

from collections.abc import Sequence
from typing import NamedTuple

from stages.instructions.prompts import Prompt
from stages.pipeline.progress import bar
from stages.tokens.arrays import TokenArrays, collate
from stages.tokens.labels import label
from stages.tokens.packing import pack
from stages.tokens.tokenizer import Tokenizer


class SplitTokens(NamedTuple):
    """A tokenized split and what became of its prompts."""

    arrays: TokenArrays
    truncated: int
    """Examples that lost the end of their response."""
    dropped: list[Prompt]
    """Prompts that leave no room for a response."""


def tokenize_split(
    name: str,
    prompts: Sequence[Prompt],
    tokenizer: Tokenizer,
    *,
    strategy: str,
    max_seq_len: int,
    mask_instruction: bool,
) -> SplitTokens | None:
    """Tokenize, label and lay out `prompts`; None if all of them are too long."""
    examples, ids, dropped = [], [], []
    with bar(f"tokenizing {name}", len(prompts)) as progress:
        for prompt in prompts:
            example = label(prompt.segments, tokenizer, max_seq_len)
            if example is None:
                dropped.append(prompt)
            else:
                examples.append(example)
                ids.append(prompt.id)
            progress.advance()
    if not examples:
        return None
    lengths = [len(example.input_ids) for example in examples]
    rows = pack(lengths, max_seq_len) if strategy == "pack" else [[i] for i in range(len(examples))]
    arrays = collate(examples, ids, rows, end_of_text=tokenizer.end_of_text, mask_instruction=mask_instruction)
    return SplitTokens(arrays, sum(example.truncated for example in examples), dropped)
