"""Others training the default model on the shipped data: TRL's SFTTrainer, and the loop of the textbook.

Each way prints one JSON line with tokens a second, padding not counted, after `WARM_UP` steps that are not timed. TRL's
run in `.venv-bench`; its bf16 weights have no float32 masters, which ours have.
"""

import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd

WARM_UP = 2
WIDTH = 512
TRL_WAYS: dict[str, dict[str, Any]] = {
    "trl-default": {},
    "trl-packed-bf16": {"packing": True, "bf16": True, "gradient_checkpointing": False, "weights": "bfloat16"},
    "trl-packed-fp32": {"packing": True, "bf16": False, "gradient_checkpointing": False, "weights": "float32"},
}
"""Settings beside SFTConfig's own defaults (bf16 autocast over float32 weights, gradient checkpointing, padding)."""

Marks = list[tuple[float, int]]
"""Time and tokens so far at the end of each step."""


def examples(split: Path) -> list[dict[str, str]]:
    """Prompt and response of every row, as the pipeline formatted them."""
    rows = []
    for segments in pd.read_parquet(split / "train.parquet")["segments"]:
        texts = [(str(s["role"]), str(s["text"])) for s in segments]
        last = max(i for i, (role, _) in enumerate(texts) if role == "response")
        rows.append({"prompt": "".join(text for _, text in texts[:last]), "completion": texts[last][1]})
    return rows


def train_by_trl(way: str, rows: list[dict[str, str]], base_model: Path, steps: int, scratch: Path) -> Marks:
    """So many steps of SFTTrainer."""
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import SFTConfig, SFTTrainer  # type: ignore[import-not-found]

    settings = dict(TRL_WAYS[way])
    weights = getattr(torch, settings.pop("weights", "float32"))
    packed = settings.get("packing", False)
    config = SFTConfig(
        output_dir=str(scratch),
        max_steps=steps,
        max_length=WIDTH,
        per_device_train_batch_size=4 if packed else 8,
        use_cpu=True,
        report_to=[],
        logging_strategy="no",
        save_strategy="no",
        include_num_input_tokens_seen="non_padding",
        disable_tqdm=True,
        **settings,
    )
    marks: Marks = []

    class Clock(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            marks.append((time.perf_counter(), int(state.num_input_tokens_seen)))

    trainer = SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(base_model, dtype=weights),
        args=config,
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(base_model),
        callbacks=[Clock()],
    )
    trainer.train()
    return marks


def train_by_textbook(rows: list[dict[str, str]], base_model: Path, steps: int) -> Marks:
    """Batches of 8 padded to the longest, float32, logits everywhere, AdamW: chapter 7 of the book."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base_model)
    model = AutoModelForCausalLM.from_pretrained(base_model, dtype=torch.float32).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-5, weight_decay=0.1)
    end = tokenizer.eos_token_id
    marks: Marks = []
    seen = 0
    for step in range(steps):
        batch = [
            tokenizer(row["prompt"] + row["completion"]).input_ids[:WIDTH] for row in rows[step * 8 : step * 8 + 8]
        ]
        width = max(map(len, batch)) + 1
        padded = torch.tensor([ids + [end] * (width - len(ids)) for ids in batch])
        targets = padded[:, 1:].clone()
        for number, ids in enumerate(batch):
            targets[number, len(ids) :] = -100
        optimizer.zero_grad()
        logits = model(input_ids=padded[:, :-1]).logits
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten()).backward()
        optimizer.step()
        seen += sum(map(len, batch))
        marks.append((time.perf_counter(), seen))
    return marks


def main(way: str, split: Path, base_model: Path, steps: int, scratch: Path) -> None:
    rows = examples(split)
    if way == "textbook":
        marks = train_by_textbook(rows, base_model, steps)
    else:
        marks = train_by_trl(way, rows, base_model, steps, scratch)
    (start, before), (stop, after) = marks[WARM_UP - 1], marks[-1]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"tokens_per_second": (after - before) / (stop - start), "peak_mb": peak}))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]), Path(sys.argv[5]))
