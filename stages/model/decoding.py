"""Answers to many prompts: sorted by length, decoded in batches with a KV cache."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import torch
from transformers import GenerationConfig, PreTrainedModel


class Completion(NamedTuple):
    """What a model wrote after one prompt."""

    token_ids: list[int]
    """Without the token that ended it."""
    finish_reason: str
    """stop: an end-of-text token came; length: max_new_tokens did."""


@torch.no_grad()
def complete(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    *,
    end_of_text: int,
    max_new_tokens: int,
    batch_size: int,
    temperature: float,
    top_p: float,
    seed: int,
    on_batch: Callable[[int], None],
) -> list[Completion]:
    """Complete every prompt (token ids), in the order given; `on_batch` hears how many a batch has finished.

    Longest first, so that the largest batch comes first and a lack of memory shows at once.
    """
    torch.manual_seed(seed)
    model.eval()
    ends = _end_tokens(model, end_of_text)
    sampling = (
        {"do_sample": True, "temperature": temperature, "top_p": top_p} if temperature > 0 else {"do_sample": False}
    )
    config = GenerationConfig(
        max_new_tokens=max_new_tokens,
        eos_token_id=sorted(ends),
        pad_token_id=end_of_text,
        **cast(dict[str, Any], sampling),
    )
    order = sorted(range(len(prompts)), key=lambda i: (-len(prompts[i]), i))
    done: dict[int, Completion] = {}
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        width = len(prompts[chosen[0]])
        padded = [[end_of_text] * (width - len(prompts[i])) + list(prompts[i]) for i in chosen]
        mask = [[0] * (width - len(prompts[i])) + [1] * len(prompts[i]) for i in chosen]
        output = cast(Any, model).generate(
            input_ids=torch.tensor(padded, device=model.device),
            attention_mask=torch.tensor(mask, device=model.device),
            generation_config=config,
        )
        for i, tokens in zip(chosen, output[:, width:].tolist(), strict=True):
            stop = next((at for at, token in enumerate(tokens) if token in ends), None)
            done[i] = Completion(tokens[:stop], "length" if stop is None else "stop")
        on_batch(len(chosen))
    return [done[i] for i in range(len(prompts))]


def _end_tokens(model: PreTrainedModel, end_of_text: int) -> set[int]:
    """The tokenizer's end-of-text, and what the model's own generation_config ends on."""
    own = getattr(model.generation_config, "eos_token_id", None)
    return {end_of_text, *(own if isinstance(own, list) else [] if own is None else [own])}
