"""Which rows each optimizer step trains on, at which rate, and where validation comes."""

import math
from collections.abc import Iterator
from typing import Literal

import numpy as np

Schedule = Literal["constant", "linear", "cosine"]


def learning_rate_at(step: int, steps: int, peak: float, warmup_fraction: float, schedule: Schedule) -> float:
    """Rate of optimizer step `step` (from 0) of `steps`: linear warm-up to `peak`, then the schedule down to 0."""
    warmup = max(1, round(warmup_fraction * steps))
    if step < warmup:
        return peak * (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    return peak * {"constant": 1.0, "linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2}[schedule]


def step_rows(num_rows: int, batch_size: int, epochs: int, seed: int) -> Iterator[list[int]]:
    """The rows of each optimizer step: every epoch all rows once, in an order of its own."""
    for epoch in range(epochs):
        order = np.random.default_rng([seed, epoch]).permutation(num_rows).tolist()
        for start in range(0, num_rows, batch_size):
            yield order[start : start + batch_size]


def validation_steps(steps_per_epoch: int, validations_per_epoch: int, epochs: int) -> set[int]:
    """Optimizer steps (from 1) after which validation comes, spread evenly over each epoch."""
    return {
        max(1, round(k * steps_per_epoch / validations_per_epoch)) for k in range(1, validations_per_epoch * epochs + 1)
    }


def seed_of(seed: int, step: int, rank: int) -> int:
    """Seed of dropout and noise in one step of one process, so that no generator's state has to be kept."""
    return int(np.random.SeedSequence([seed, step, rank]).generate_state(1)[0])
