"""Every parameter of finetune does what params.yaml says, and none is read and then forgotten."""

import functools
import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch.nn.functional import embedding
from typer.testing import CliRunner

from stages.finetune import app
from stages.model import kernels
from stages.model.batches import make_batch
from stages.model.checkpoint import pick_dtype
from stages.model.history import History
from stages.model.noise import EmbeddingNoise
from stages.model.parallel import ALONE
from stages.model.preparing import choose_ways, export, prepare, starting_folder
from stages.model.settings import FinetuneParams
from stages.pipeline.errors import UserError
from tests.imports import ROOT
from tests.model.making import CPU, data, make_training, settings, train
from tests.model.tiny_models import make_tiny

LORA = {"method": "lora", "learning_rate": 3e-2}
OVERFITS = {"epochs": 8}
EFFECTS: dict[str, tuple[dict[str, Any], Any]] = {
    "method": ({}, "lora"),
    "lora_rank": (LORA, 4),
    "lora_alpha": (LORA, 8),
    "lora_dropout": (LORA, 0.5),
    "lora_targets": (LORA, ["q_proj"]),
    "optimizer": ({}, "SGD"),
    "optimizer_options": ({}, {"betas": [0.5, 0.9]}),
    "learning_rate": ({}, 1e-3),
    "schedule": ({}, "linear"),
    "warmup_fraction": ({}, 0.5),
    "epochs": ({}, 2),
    "batch_size": ({}, 8),
    "weight_decay": ({}, 0.5),
    "max_grad_norm": ({"optimizer": "SGD", "learning_rate": 1.0}, 0.01),
    "label_smoothing": ({}, 0.2),
    "neftune_alpha": ({}, 5.0),
    "validations_per_epoch": ({}, 3),
    "early_stopping": (OVERFITS, True),
    "overfit_patience": (OVERFITS | {"early_stopping": True}, 6),
    "overfit_p_value": (OVERFITS | {"early_stopping": True}, 1e-12),
    "seed": ({}, 8),
}
"""Given these parameters, another value of this one makes another training."""
ELSEWHERE = {
    *("init_from", "precision", "compile", "gradient_checkpointing"),  # below
    *("micro_batch_size", "save_every"),  # test_training.py
    *("sample_prompts", "sample_tokens"),  # test_samples.py
    *("launch", "sharding"),  # where several processes train
}


@functools.cache
def _trained(folder: Path, given: str) -> History:
    return train(folder, **{"early_stopping": False} | json.loads(given))


def trained(folder: Path, **given: Any) -> History:
    """Each training once, however many options are held against it."""
    return _trained(folder, json.dumps(given, sort_keys=True))


def test_no_option_is_left_out() -> None:
    assert set(EFFECTS) | ELSEWHERE == set(FinetuneParams.model_fields)
    assert not set(EFFECTS) & ELSEWHERE


@pytest.mark.parametrize("option", EFFECTS)
def test_every_option_does_something(tiny_llama: Path, option: str) -> None:
    given, value = EFFECTS[option]
    before, after = trained(tiny_llama, **given), trained(tiny_llama, **given | {option: value})
    assert after.rows[0].validation_loss == before.rows[0].validation_loss, "it starts from the same model"
    assert after.rows != before.rows


def test_smoothed_labels_change_training_and_not_what_is_reported(tiny_llama: Path) -> None:
    """At a rate of almost nothing the losses are those of labels as they are."""
    changes: dict[str, Any] = {"learning_rate": 1e-12, "epochs": 1}
    smoothed = trained(tiny_llama, label_smoothing=0.5, **changes).rows
    for row, plain in zip(smoothed, trained(tiny_llama, **changes).rows, strict=True):
        assert row.train_loss == pytest.approx(plain.train_loss, rel=1e-6)
        assert row.validation_loss == pytest.approx(plain.validation_loss, rel=1e-6)


def test_noise_is_as_strong_as_an_example_is_short() -> None:
    """alpha / sqrt(tokens * size), arXiv 2310.05914, of each example of a packed row."""
    model, batch = make_tiny("llama").train(), make_batch(data().training, [0, 1], CPU)
    noise = EmbeddingNoise(model, 5.0)
    embeddings: Any = model.get_input_embeddings()
    plain = embedding(batch.input_ids, embeddings.weight)
    assert torch.equal(embeddings(batch.input_ids), plain), "no batch to train on yet"
    noise.expect(batch)
    torch.manual_seed(0)
    added = (embeddings(batch.input_ids) - plain).detach()
    assert (added.mean() / added.std()).abs() < 0.05
    for number in batch.example[batch.example >= 0].unique():
        of_example = added[batch.example == number]
        highest = 5 / math.sqrt(of_example.numel())
        assert 0.85 * highest < of_example.abs().max() <= highest * (1 + 1e-5)
    assert not torch.equal(embeddings(batch.input_ids) - plain, added), "other noise every time"
    model.eval()
    assert torch.equal(embeddings(batch.input_ids), plain)


@pytest.mark.parametrize("kind", ["tiny_llama", "tiny_gpt2"])
@pytest.mark.parametrize("method", ["full", "lora"])
def test_checkpointed_activations_are_computed_twice_to_the_same_losses(
    kind: str, method: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    folder = request.getfixturevalue(kind)
    passes, histories = [], []
    for wanted in (False, True):
        changes: dict[str, Any] = {"method": method, "gradient_checkpointing": wanted, "epochs": 1}
        training = make_training(folder, tmp_path / str(wanted), **changes)
        base: Any = training.model.base_model
        seen: list[bool] = []
        layer = (base.layers if kind == "tiny_llama" else base.h)[0]
        norm = layer.input_layernorm if kind == "tiny_llama" else layer.ln_1
        norm.register_forward_hook(lambda *_, seen=seen: seen.append(torch.is_grad_enabled()))
        training.trainer.run()
        passes.append(sum(seen))
        histories.append(training.history)
    assert passes[1] == 2 * passes[0]
    for found, expected in zip(histories[1].rows, histories[0].rows, strict=True):
        assert found == pytest.approx(expected, rel=1e-6)


@pytest.fixture
def earlier(tiny_llama: Path, tmp_path: Path) -> tuple[Path, History]:
    """A folder of checkpoints with one of an earlier run, and its history."""
    history = train(tiny_llama, epochs=1)
    export(tmp_path / "init/earlier", tiny_llama, tiny_llama, settings(), history.best_weights, {})
    return tmp_path / "init", history


def test_training_starts_from_an_earlier_checkpoint(tiny_llama: Path, earlier: tuple[Path, History]) -> None:
    init, history = earlier
    folder = starting_folder(tiny_llama, init, settings(init_from="earlier"))
    assert folder == init / "earlier"
    assert history.best.step > 0
    assert train(folder, epochs=1).rows[0].validation_loss == pytest.approx(history.best.validation_loss, rel=1e-6)
    assert starting_folder(tiny_llama, init, settings()) == tiny_llama


@pytest.mark.parametrize(("named", "said"), [("later", "holds no checkpoint"), ("other", "has another tokenizer")])
def test_what_cannot_be_started_from_is_said_in_one_line(
    tiny_llama: Path, tiny_gpt2: Path, tmp_path: Path, named: str, said: str
) -> None:
    shutil.copytree(tiny_gpt2, tmp_path / "init/other")
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    params["finetune"]["init_from"] = named
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    options = {"--params": tmp_path / "params.yaml", "--base-model": tiny_llama, "--init": tmp_path / "init"}
    done = CliRunner().invoke(app, [str(word) for option in options.items() for word in option])
    assert done.exit_code == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: params.yaml: finetune.init_from: {tmp_path / 'init' / named} {said}")


@pytest.fixture
def _eager_again() -> Iterator[None]:
    yield
    kernels.use_compiled(False)


@pytest.mark.usefixtures("_eager_again")
@pytest.mark.parametrize("compiler", [True, False])
def test_layers_are_fused_and_compiled_where_there_is_a_compiler(
    compiler: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "can_compile", lambda: compiler)
    for wanted in ("auto", "false"):
        chosen, model = settings(compile=wanted), make_tiny("llama")
        ways = choose_ways(model, chosen, CPU, ALONE)
        prepare(model, chosen, torch.float32, ways)
        assert ways.fused == ways.compiled == kernels._state["compiled"] == (compiler and wanted == "auto")
    if compiler:
        assert choose_ways(model, settings(compile=True), CPU, ALONE).compiled
    else:
        with pytest.raises(UserError, match=r"finetune\.compile: there is no .*compiler here; install g\+\+"):
            choose_ways(model, settings(compile=True), CPU, ALONE)


@pytest.mark.parametrize("hardware", [True, False])
def test_precision_is_what_is_wanted_or_what_the_hardware_multiplies(
    hardware: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: hardware)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    assert pick_dtype("bf16", CPU) == torch.bfloat16
    assert pick_dtype("fp32", CPU) == torch.float32
    assert pick_dtype("auto", CPU) == (torch.bfloat16 if hardware else torch.float32)
