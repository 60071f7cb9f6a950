"""Answers by transformers' own `generate`, which knows every model: what stages/model/engine.py is held against."""

from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple, cast

import torch
from transformers import GenerationConfig, PreTrainedModel, StoppingCriteria


class Decoding(NamedTuple):
    """How answers are decoded."""

    max_new_tokens: int
    temperature: float = 0.0
    """0: the likeliest token every time."""
    top_k: int = 0
    """Draws are from so many likeliest tokens; 0: from all."""
    top_p: float = 1.0
    """Draws are from the likeliest tokens up to this probability mass."""
    repetition_penalty: float = 1.0
    """Logits of tokens that have come are divided by it where positive, multiplied where negative; 1: none."""


class Job(NamedTuple):
    """One answer to write."""

    prompt: Sequence[int]
    """Token ids."""
    seed: int = 0
    """Of its draws, where there are any."""


class Completion(NamedTuple):
    """What a model wrote after one prompt."""

    token_ids: list[int]
    """Without the token that ended it."""
    finish_reason: str
    """stop: an end-of-text token or a text of `Stops` came; length: max_new_tokens did."""


class Stops(NamedTuple):
    """Texts that end an answer where they come; they and what follows are for the reader of its tokens to cut."""

    texts: tuple[str, ...]
    decode: Callable[[Sequence[int]], str]

    def met(self, tokens: Sequence[int]) -> bool:
        """Whether the last of these tokens completed such a text; every token has a byte of it at least."""
        reach = max((len(text.encode()) for text in self.texts), default=0) + 1  # some decoders strip the first
        tail = self.decode(tokens[-reach:])
        return any(text in tail for text in self.texts)

    def cut(self, text: str) -> str:
        """What stands before the first of them.

        >>> Stops(("\\n", "Q:"), lambda tokens: "").cut("four Q: two\\n")
        'four '
        """
        return text[: min((text.index(stop) for stop in self.texts if stop in text), default=None)]


NO_STOPS = Stops((), lambda tokens: "")

OnAnswer = Callable[[int, Completion], None]
"""Hears of each answer as it ends, by the number of its job."""


@torch.no_grad()
def complete(
    model: PreTrainedModel,
    jobs: Sequence[Job],
    *,
    ends: Collection[int],
    how: Decoding,
    batch_size: int,
    on_answer: OnAnswer,
    on_step: Callable[[], None] = lambda: None,
    stops: Stops = NO_STOPS,
) -> None:
    """Answer every job; `ends` are the tokens that end an answer, `on_step` is called between batches.

    Longest first, so that a lack of memory shows at once. Draws come one answer at a time, each from its own seed.
    """
    model.eval()
    config = _config(how, ends)
    size = batch_size if how.temperature == 0 else 1
    order = sorted(range(len(jobs)), key=lambda at: (-len(jobs[at].prompt), at))
    for start in range(0, len(order), size):
        on_step()
        chosen = order[start : start + size]
        width = len(jobs[chosen[0]].prompt)
        filler = min(ends)
        padded = [[filler] * (width - len(jobs[at].prompt)) + list(jobs[at].prompt) for at in chosen]
        mask = [[0] * (width - len(jobs[at].prompt)) + [1] * len(jobs[at].prompt) for at in chosen]
        torch.manual_seed(jobs[chosen[0]].seed)
        output = cast(Any, model).generate(
            input_ids=torch.tensor(padded, device=model.device),
            attention_mask=torch.tensor(mask, device=model.device),
            generation_config=config,
            stopping_criteria=[_Stopping(stops, width)] if stops.texts else None,
        )
        for at, tokens in zip(chosen, output[:, width:].tolist(), strict=True):
            stop = next((at for at, token in enumerate(tokens) if token in ends), None)
            own = tokens[:stop]
            on_answer(at, Completion(own, "length" if stop is None and not stops.met(own) else "stop"))


class _Stopping(StoppingCriteria):
    """Ends those answers of a batch that have come to one of the texts; `width` are the tokens of their prompts."""

    def __init__(self, stops: Stops, width: int) -> None:
        self._stops, self._width = stops, width

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        met = [self._stops.met(tokens) for tokens in input_ids[:, self._width :].tolist()]
        return torch.tensor(met, device=input_ids.device)


def _config(how: Decoding, ends: Collection[int]) -> GenerationConfig:
    sampling: dict[str, Any] = {"do_sample": False}
    if how.temperature > 0:
        sampling = {"do_sample": True, "temperature": how.temperature, "top_k": how.top_k, "top_p": how.top_p}
    return GenerationConfig(
        max_new_tokens=how.max_new_tokens,
        repetition_penalty=how.repetition_penalty,
        eos_token_id=sorted(ends),
        pad_token_id=min(ends),
        **sampling,
    )


def end_tokens(model: PreTrainedModel, end_of_text: int) -> frozenset[int]:
    """The tokenizer's end-of-text, and what the model's own generation_config ends on."""
    own = getattr(model.generation_config, "eos_token_id", None)
    return frozenset({end_of_text, *(own if isinstance(own, list) else [] if own is None else [own])})
