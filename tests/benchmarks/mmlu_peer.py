"""MMLU on the base model, five shots from dev, by one way: ours or lm-eval's own `hf` model.

    python -m tests.benchmarks.mmlu_peer WAY PRECISION FOLDER SPLIT SUBJECTS

WAY is `ours` or `lm-eval-<batch size>`, FOLDER holds dev/ and SPLIT/ as published, SUBJECTS stand between commas; `all`
are those that are there. lm-eval makes the prompts and reads the answers in both. Prints one JSON line.
"""

import csv
import json
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from stages.benchmarks.benchmark import Settings
from stages.benchmarks.harness import Task, run, stock
from stages.benchmarks.subject import LocalSubject
from stages.model.allocator import keep_freed_memory
from stages.model.answers import Writer
from stages.model.calls import CallStore
from stages.model.checkpoint import make_deterministic, pick_device
from stages.model.decoding import Decoding
from stages.pipeline.stopping import Stop
from tests.benchmarks.trials import BASE_MODEL


def rows_of(path: Path) -> list[dict[str, Any]]:
    with path.open(encoding="utf-8", newline="") as file:
        return [
            {"question": question, "choices": choices, "answer": "ABCD".index(answer)}
            for question, *choices, answer in csv.reader(file)
        ]


def task_of(folder: Path, split: str, subject: str) -> Task:
    docs = {part: rows_of(folder / part / f"{subject}_{part}.csv") for part in ("dev", split)}
    return Task(f"mmlu/{subject}", stock(f"mmlu/default/mmlu_{subject}.yaml") | {"test_split": split}, docs, shots=5)


def subject_of(way: str, dtype: torch.dtype) -> Any:
    """The model, loaded and asked once."""
    if way == "ours":
        writer = Writer("local", Decoding(1), 1, dtype, pick_device())
        ours = LocalSubject("base", BASE_MODEL, None, writer, store=CallStore(), stop=Stop(), seed=1)
        ours.score([([1], [2])])
        return ours
    from lm_eval.models.huggingface import HFLM

    size = int(way.rpartition("-")[2])
    peer = HFLM(str(BASE_MODEL), device=str(pick_device()), dtype=str(dtype).split(".")[1], batch_size=size)
    with torch.no_grad():
        peer.model(input_ids=torch.tensor([[1]], device=peer.device))  # weights come from the disk
    return SimpleNamespace(lm=peer, name="base", template="none")


def main(way: str, precision: str, folder: str, split: str, subjects: str) -> None:
    keep_freed_memory()
    make_deterministic(1)
    there = sorted(path.name.removesuffix(f"_{split}.csv") for path in (Path(folder) / split).glob("*.csv"))
    tasks = [task_of(Path(folder), split, name) for name in (there if subjects == "all" else subjects.split(","))]
    subject = subject_of(way, torch.bfloat16 if precision == "bf16" else torch.float32)
    started = time.perf_counter()
    measured = run(tasks, subject, Settings(resamples=100))
    seconds = time.perf_counter() - started
    right = [value for found in measured.values() for value in found.values["acc"]]
    print(json.dumps({"seconds": seconds, "rows": len(right), "right": sum(right)}))


if __name__ == "__main__":
    main(*sys.argv[1:])
