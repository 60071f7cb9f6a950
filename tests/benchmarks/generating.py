"""Answers to the test split of the repository's pipeline by one way: ours, transformers' generate, the textbook's loop.

    python -m tests.benchmarks.generating WAY PRECISION

WAY is `ours`, `generate-<batch size>` or `loop` (one prompt at a time, everything computed anew for each token; every
27th prompt alone). Both models answer greedily, up to 128 tokens; prints one JSON line.
"""

import json
import sys
import time
from collections.abc import Callable, Sequence

import torch
from transformers import PreTrainedModel

from stages.instructions.prompts import read_prompts
from stages.judging.answering import encode
from stages.model.allocator import keep_freed_memory
from stages.model.checkpoint import load_model, make_deterministic, pick_device
from stages.model.decoding import Completion, Decoding, Job, complete, end_tokens
from stages.model.engine import TILE, Engine
from stages.model.prepacked import can_prepack, prepack
from stages.tokens.tokenizer import Tokenizer
from tests.imports import ROOT

NEW_TOKENS = 128
EVERY = 27
"""The loop takes a hundred times as long."""

Done = dict[int, Completion]
Answer = Callable[[PreTrainedModel, Sequence[Job], frozenset[int], Done], None]


def ours(model: PreTrainedModel, jobs: Sequence[Job], ends: frozenset[int], done: Done) -> None:
    """As stages/model/answers.py does it, the laying out of weights included."""
    if can_prepack(model.dtype, model.device):
        prepack(model, TILE)
    room = max(len(job.prompt) for job in jobs) + NEW_TOKENS
    engine = Engine(model, Decoding(NEW_TOKENS), ends, batch_size=128, room=room)
    engine.run(jobs, done.__setitem__, lambda: None)


def by_generate(batch_size: int) -> Answer:
    """Prompts sorted by length, padded on the left: `generate` as it is meant to be used."""

    def answer(model: PreTrainedModel, jobs: Sequence[Job], ends: frozenset[int], done: Done) -> None:
        how = Decoding(NEW_TOKENS)
        complete(model, jobs, ends=ends, how=how, batch_size=batch_size, on_answer=done.__setitem__)

    return answer


@torch.no_grad()
def by_loop(model: PreTrainedModel, jobs: Sequence[Job], ends: frozenset[int], done: Done) -> None:
    """Chapter 5 and 7 of Raschka's book: no cache, no batch."""
    for at, job in enumerate(jobs):
        tokens = list(job.prompt)
        while len(tokens) < len(job.prompt) + NEW_TOKENS:
            token = int(model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0, -1].argmax())
            if token in ends:
                break
            tokens.append(token)
        done[at] = Completion(tokens[len(job.prompt) :], "")


def main(way: str, precision: str) -> None:
    keep_freed_memory()
    make_deterministic(1)
    figures = {}
    for name, folder in (("fine-tuned", ROOT / "data/checkpoint"), ("base", ROOT / "data/base_model")):
        tokenizer = Tokenizer(folder)
        prompts = read_prompts(ROOT / "data/split/test.parquet")
        jobs = [Job(encode(prompt, tokenizer)) for prompt in prompts[:: EVERY if way == "loop" else 1]]
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        model = load_model(folder, dtype, pick_device())
        with torch.no_grad():
            model(input_ids=torch.tensor([jobs[0].prompt]))  # weights come from the disk
        answer = ours if way == "ours" else by_loop if way == "loop" else by_generate(int(way.split("-")[1]))
        done: Done = {}
        started = time.perf_counter()
        answer(model, jobs, end_tokens(model, tokenizer.end_of_text), done)
        seconds = time.perf_counter() - started
        tokens = [done[at].token_ids for at in range(len(jobs))]
        figures[name] = {"seconds": seconds, "tokens": tokens}
    print(json.dumps(figures))


if __name__ == "__main__":
    main(*sys.argv[1:])
