"""What is looked at before training: its memory, its time, and the loss that the model starts with."""

import math
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest
import torch

from stages.model import gates
from stages.model.checkpoint import load_model, outline_of
from stages.model.gates import Need, check_memory, check_start, estimate, free_memory, matrix_rate, plain_losses
from stages.model.parallel import ALONE, Ranks
from stages.model.preparing import Ways, choose_ways
from stages.model.settings import FinetuneParams
from stages.model.validation import ExampleLosses, validate
from stages.pipeline.errors import UserError
from stages.tokens.arrays import write_arrays
from stages.tokens.packing import pack
from tests.imports import ROOT
from tests.model.making import CPU, data, examples, load, settings
from tests.tokens.examples import END

PLAIN = Ways(fused=False, compiled=False, compiled_layers=False, sharded=False)
GIB = 2**30


@pytest.fixture(autouse=True)
def _known_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gates, "matrix_rate", lambda *_: 1e11)


def need(
    folder: Path, ways: Ways = PLAIN, ranks: Ranks = ALONE, dtype: torch.dtype = torch.float32, **changes: Any
) -> Need:
    return estimate(outline_of(folder), settings(**changes), data(), dtype, CPU, ways, ranks)


def test_an_outline_has_every_weight_and_none_in_memory(tiny_llama: Path) -> None:
    outline, model = outline_of(tiny_llama), load(tiny_llama)
    assert {name: p.shape for name, p in outline.named_parameters()} == {
        name: p.shape for name, p in model.named_parameters()
    }
    assert all(p.is_meta for p in outline.parameters())
    for changes in ({}, {"compile": "auto"}, {"method": "lora"}):
        chosen: FinetuneParams = settings(**changes)
        assert choose_ways(outline, chosen, CPU, ALONE) == choose_ways(model, chosen, CPU, ALONE)


@pytest.mark.parametrize(
    ("changes", "memory", "seconds"),
    [
        ({"micro_batch_size": 4}, 1, 0),
        ({"optimizer": "SGD"}, -1, 0),
        ({"method": "lora"}, -1, 0),
        ({"gradient_checkpointing": True, "micro_batch_size": 4}, 0, 1),
        ({"epochs": 6}, 0, 1),
        ({"validations_per_epoch": 4}, 0, 1),
    ],
)
def test_what_makes_it_more_and_less(tiny_llama: Path, changes: dict[str, Any], memory: int, seconds: int) -> None:
    before, after = need(tiny_llama), need(tiny_llama, **changes)
    if memory:
        assert np.sign(after.memory - before.memory) == memory
    assert np.sign(after.seconds - before.seconds) == seconds


def test_shards_are_less_for_each_process_and_processes_are_quicker(tiny_llama: Path) -> None:
    alone, one_of_two = need(tiny_llama), need(tiny_llama, PLAIN._replace(sharded=True), Ranks(0, 2), sharding="fsdp")
    assert one_of_two.memory < alone.memory
    assert one_of_two.seconds == pytest.approx(alone.seconds / 2)


def test_the_parameters_that_are_trained(tiny_llama: Path) -> None:
    model = load(tiny_llama)
    full, lora = need(tiny_llama), need(tiny_llama, method="lora", lora_rank=4, lora_targets="q_proj")
    assert full.trained == full.weights == lora.weights == model.num_parameters()
    layers, size = model.config.num_hidden_layers, model.config.hidden_size
    assert lora.trained == layers * 4 * 2 * size


@pytest.mark.parametrize(("optimizer", "tensors"), [("AdamW", 5), ("SGD", 4), ("Adafactor", 3)])
def test_what_stays_is_weights_gradients_and_moments(optimizer: str, tensors: int) -> None:
    """Of a thousand float32 weights: themselves, the best ones, gradients, moments."""
    chosen = settings(optimizer=optimizer)
    assert gates._kept(1000, 1000, chosen, torch.float32, CPU, 1) == 4000 * tensors
    on_gpu = gates._kept(1000, 1000, chosen, torch.float32, torch.device("cuda"), 1)
    assert on_gpu == 4000 * (tensors - 1), "the best ones wait on the CPU"
    in_half = gates._kept(1000, 1000, chosen, torch.bfloat16, CPU, 1)
    assert in_half == 2000 * 2 + 4000 * (tensors - 1), "bfloat16 ones have masters beside them"


def test_a_training_that_cannot_fit_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gates, "free_memory", lambda device: 3 * GIB)
    assert check_memory(Need(2 * GIB, 1.0, 1, 1), CPU) == 3 * GIB
    expected = r"^finetune: needs about 40\.0 GiB of memory and 3\.0 GiB are free; lower finetune\.micro_batch_size, "
    with pytest.raises(UserError, match=expected):
        check_memory(Need(40 * GIB, 1.0, 1, 1), CPU)


def test_a_model_far_too_large_is_refused_before_it_is_loaded(tiny_llama: Path, tmp_path: Path) -> None:
    """Of 10,000 GiB, and there are no weights at all."""
    config = (tiny_llama / "config.json").read_text().replace('"vocab_size": 1000', '"vocab_size": 100000000000')
    assert "100000000000" in config
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(UserError, match=r"^finetune: needs about \d{5,}\.\d GiB"):
        check_memory(need(tmp_path), CPU)


def test_memory_in_use_is_not_free() -> None:
    before = free_memory(CPU)
    assert GIB // 4 < before <= psutil.virtual_memory().total + GIB


@pytest.mark.parametrize(
    ("version", "files"),
    [
        (
            2,
            {
                "memory.max": "3221225472",
                "memory.current": "2147483648",
                "memory.stat": "inactive_file 1073741824\nanon 1",
            },
        ),
        (
            1,
            {
                "memory/memory.limit_in_bytes": "3221225472",
                "memory/memory.usage_in_bytes": "2147483648",
                "memory/memory.stat": "inactive_file 536870912\nactive_file 536870912",
            },
        ),
    ],
)
def test_a_container_has_less_than_the_machine(
    version: int, files: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """3 GiB in all, 2 in use, of which files take 1 and would give it back."""
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    monkeypatch.setattr(gates, "CGROUP", tmp_path)
    own = psutil.Process().memory_info().rss
    assert free_memory(CPU) == pytest.approx(2 * GIB + own, abs=GIB // 20)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert free_memory(CPU) == pytest.approx(GIB + own, abs=GIB // 20)


def test_a_container_without_a_limit_has_what_the_machine_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in {"memory.max": "max", "memory.current": "5", "memory.stat": "anon 5"}.items():
        (tmp_path / name).write_text(text + "\n")
    monkeypatch.setattr(gates, "CGROUP", tmp_path)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=5 * GIB))
    assert free_memory(CPU) == pytest.approx(5 * GIB + psutil.Process().memory_info().rss, rel=0.01)


def test_the_rate_is_that_of_a_product() -> None:
    assert 1e8 < matrix_rate(CPU, torch.float32, 256) < 1e15


@pytest.mark.parametrize("kind", ["tiny_llama", "tiny_gpt2"])
def test_packed_examples_have_the_losses_that_transformers_alone_gives_them(
    kind: str, request: pytest.FixtureRequest
) -> None:
    folder = request.getfixturevalue(kind)
    plain = plain_losses(load_model(folder, torch.float32, CPU), data().validation, count=6)
    found = validate(load(folder), data().validation, CPU)
    assert sorted(plain) == list(range(6))
    assert [found.full[number] for number in plain] == pytest.approx(list(plain.values()), rel=1e-4)
    assert check_start(plain, found, 1000) is None or found.full_loss >= math.log(1000)


def losses(nats: float) -> ExampleLosses:
    """Four examples of ten tokens each, with so many nats a token."""
    tokens = np.full(4, 10)
    return ExampleLosses(tokens * nats, tokens, 0 * tokens, tokens * nats, tokens)


def test_a_model_that_starts_elsewhere_is_refused() -> None:
    plain = dict.fromkeys(range(4), 20.0)
    assert check_start(plain, losses(2.0), 1000) is None
    assert check_start(plain, losses(2.03), 1000) is None, "rounding"
    for wrong in (2.2, 1.8, math.nan):
        with pytest.raises(UserError, match=r"base model's loss should be 2\.000 and is (2\.200|1\.800|nan) here"):
            check_start(plain, losses(wrong), 1000)


def test_a_model_that_knows_nothing_is_noticed() -> None:
    assert check_start({0: 70.0}, losses(7.0), 1000) == (
        "the base model's loss, 7.00, is that of guessing (6.91): is it trained?"
    )


WITH_LITTLE_MEMORY = """
from stages.model import gates
gates.free_memory = lambda device: 1 << 27
from stages.finetune import app
app()
"""


def test_the_stage_refuses_what_cannot_fit_and_touches_nothing(tiny_llama: Path, tmp_path: Path) -> None:
    (tmp_path / "tokens").mkdir()
    made = examples(8)
    for split in ("train", "validation"):
        ids = [str(number) for number in range(8)]
        rows = pack(made.lengths, 128)
        write_arrays(tmp_path / "tokens" / split, made, rows, ids, end_of_text=END, mask_instruction=True)
    (tmp_path / "tokens/tokens.json").write_text('{"template": "chatml"}')
    command: list[str | Path] = [
        sys.executable,
        "-c",
        WITH_LITTLE_MEMORY,
        "--params",
        ROOT / "params.yaml",
        "--base-model",
        tiny_llama,
    ]
    surroundings = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*command, "--tokens", "tokens"], cwd=tmp_path, env=surroundings, capture_output=True, text=True
    )
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: finetune: needs about ")
    assert not {"data", "metrics"} & {path.name for path in tmp_path.iterdir()}
