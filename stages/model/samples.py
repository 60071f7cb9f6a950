"""Answers to a few fixed validation prompts, so that one sees a model learn."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
from transformers import PreTrainedModel

from stages.model import attention
from stages.model.decoding import Completion, Decoding, Job, complete, end_tokens
from stages.tokens.arrays import TokenArrays
from stages.tokens.tokenizer import Tokenizer


class Sample(NamedTuple):
    """A prompt to answer at every validation."""

    id: str
    prompt: list[int]
    """Token ids up to the last response."""
    reference: str


def choose_samples(arrays: TokenArrays, count: int, tokenizer: Tokenizer) -> list[Sample]:
    """The first `count` examples of a split by id, which is the same choice for every model and order of rows."""
    chosen = sorted(range(len(arrays.ids)), key=lambda number: arrays.ids[number])[:count]
    samples = []
    for number in chosen:
        row, columns = np.nonzero(arrays.example == number)
        row, columns = row[0], np.sort(columns)
        in_response = arrays.in_response[row, columns]
        before = np.flatnonzero(~in_response)
        start = int(before[-1]) + 1 if len(before) else 0
        reference = arrays.next_ids[row, columns[start:-1]].tolist()
        prompt = arrays.input_ids[row, columns[: start + 1]].tolist()
        samples.append(Sample(arrays.ids[number], prompt, tokenizer.decode(reference).strip()))
    return samples


def answer_samples(
    model: PreTrainedModel, samples: Sequence[Sample], tokenizer: Tokenizer, max_new_tokens: int
) -> list[str]:
    """Greedy answers, as text of one line each."""
    was_training = model.training
    texts = [""] * len(samples)

    def on_answer(at: int, completion: Completion) -> None:
        texts[at] = " ".join(tokenizer.decode(completion.token_ids).split())

    with _plain_attention(model):
        complete(
            model,
            [Job(sample.prompt) for sample in samples],
            ends=end_tokens(model, tokenizer.end_of_text),
            how=Decoding(max_new_tokens),
            batch_size=8,
            on_answer=on_answer,
        )
    model.train(was_training)
    return texts


@contextmanager
def _plain_attention(model: PreTrainedModel) -> Iterator[None]:
    """Attention that keeps a cache and knows padding on the left, which ours does not."""
    model.set_attn_implementation("sdpa")
    try:
        yield
    finally:
        model.set_attn_implementation(attention.NAME)
