"""A model's answers to prompts, as text."""

import time
from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedModel

from stages.instructions.prompts import Prompt
from stages.model.decoding import complete
from stages.pipeline.progress import bar, say
from stages.tokens.tokenizer import Tokenizer


def answer(
    name: str, model: PreTrainedModel, tokenizer: Tokenizer, prompts: Sequence[Prompt], end: str, **decoding: Any
) -> list[tuple[str, str]]:
    """Answer text and finish reason for each prompt; `end`, the template's closing text, is taken off.

    The prompt is tokenized as in training: everything before the last response. `decoding` goes to `complete`.
    """
    encoded = []
    for prompt in prompts:
        last = max(at for at, segment in enumerate(prompt.segments) if segment.role == "response")
        encoded.append(tokenizer.encode_segments(prompt.segments[:last]))
    started = time.perf_counter()
    with bar(f"answers of the {name}", len(prompts)) as progress:

        def on_batch(finished: int) -> None:
            progress.advance(finished)

        completions = complete(model, encoded, end_of_text=tokenizer.end_of_text, on_batch=on_batch, **decoding)
    seconds = time.perf_counter() - started
    num_tokens = sum(len(completion.token_ids) for completion in completions)
    say(f"  {name}: {len(prompts)} answers, {num_tokens} tokens, {num_tokens / seconds:.0f} tokens/s")
    texts = [tokenizer.decode(completion.token_ids).strip() for completion in completions]
    reasons = [completion.finish_reason for completion in completions]
    return [
        (text.removesuffix(end).rstrip() if end else text, reason) for text, reason in zip(texts, reasons, strict=True)
    ]
