"""Adapters: they alone are trained, and what is exported with them merged is the model that was trained."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel

from stages.model.adapters import add_adapters
from stages.model.batches import make_batch
from stages.model.preparing import export, load_plain
from stages.model.validation import validate
from stages.pipeline.errors import UserError
from tests.model.making import CPU, Training, data, load, make_training, settings, train
from tests.model.tiny_models import make_tiny

METHODS = ["lora", "dora"]
CHANGES: dict[str, Any] = {"learning_rate": 3e-2, "lora_rank": 4, "early_stopping": False}


def trained(folder: Path, state: Path, **changes: Any) -> Training:
    training = make_training(folder, state, **CHANGES | changes)
    training.trainer.run()
    return training


def logits_of(model: Any) -> torch.Tensor:
    """Of two rows of the validation data."""
    batch = make_batch(data().validation, [0, 1], CPU)
    model.eval()
    with torch.no_grad():
        logits: torch.Tensor = model(
            input_ids=batch.input_ids, position_ids=batch.position_ids, blocks=batch.blocks
        ).logits
    return logits


@pytest.mark.parametrize("kind", ["tiny_llama", "tiny_gpt2"])
@pytest.mark.parametrize("method", METHODS)
def test_adapters_alone_are_trained_and_the_export_is_the_model(
    kind: str, method: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    folder: Path = request.getfixturevalue(kind)
    training = trained(folder, tmp_path / "state", method=method)
    history, model = training.history, training.model
    assert history.rows[-1].train_loss < history.rows[0].train_loss - 0.03
    assert history.best_weights
    assert all("lora_" in name for name in history.best_weights)
    base = dict(load(folder).named_parameters())
    frozen = {name.replace(".base_layer", ""): p for name, p in model.named_parameters() if "lora_" not in name}
    assert base.keys() == frozen.keys()
    assert [name for name, weight in frozen.items() if not torch.equal(weight, base[name])] == []

    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in history.best_weights:
                parameter.copy_(history.best_weights[name])
    expected = logits_of(model)
    export(tmp_path, folder, folder, training.settings, history.best_weights, {})
    merged = load(tmp_path)
    torch.testing.assert_close(logits_of(merged), expected, rtol=1e-4, atol=1e-4)
    assert (expected - logits_of(load(folder))).abs().max() > 1e-2, "else nothing was merged"
    found = validate(merged, data().validation, CPU).response_loss
    assert found == pytest.approx(history.best.validation_loss, rel=1e-6)

    beside = PeftModel.from_pretrained(load(folder), str(tmp_path / "adapter"))
    torch.testing.assert_close(logits_of(beside.base_model.model), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_the_adapter_is_written_with_the_same_bytes(tiny_llama: Path, tmp_path: Path, method: str) -> None:
    """peft keeps the names of layers in a set, whose order is another one in every process."""
    history = train(tiny_llama, method=method, epochs=1, **CHANGES)
    chosen = settings(method=method, **CHANGES)
    for name in ("one", "other"):
        export(tmp_path / name, tiny_llama, tiny_llama, chosen, history.best_weights, {})
    one, other = (
        {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        for folder in (tmp_path / "one", tmp_path / "other")
    )
    assert one == other
    assert {path.name for path in one if path.parent.name == "adapter"} == {
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    config = json.loads(one[Path("adapter/adapter_config.json")])
    assert len(config["target_modules"]) == 14
    assert config["target_modules"] == sorted(config["target_modules"])
    assert list(config) == sorted(config)
    assert config["use_dora"] == (method == "dora")


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        ("all-linear", {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}),
        (["q_proj", "v_proj"], {"q_proj", "v_proj"}),
        ("q_proj", {"q_proj"}),
    ],
)
def test_adapters_are_where_they_are_wanted(targets: str | list[str], expected: set[str]) -> None:
    model = make_tiny("llama")
    add_adapters(model, settings(method="lora", lora_targets=targets))
    assert {name.split(".")[-4] for name, p in model.named_parameters() if p.requires_grad} == expected


@pytest.mark.parametrize(
    ("kind", "targets", "said"),
    [
        ("llama", ["q_proj", "c_attn"], "no layer is named c_attn; known: down_proj, embed_tokens, gate_proj, k_proj"),
        ("llama", "all_linear", "no layer is named all_linear"),
        ("llama", ["norm"], "no layer is named norm"),
        ("llama", [], "No `target_modules` passed"),
        ("gpt2", ["q_proj"], "no layer is named q_proj; known: c_attn, c_fc, c_proj, wpe, or all-linear"),
        ("gpt2", ["lm_head"], "lm_head: embeddings and output layer are one matrix in this model"),
        ("gpt2", ["wte"], "wte: embeddings and output layer are one matrix in this model"),
    ],
)
def test_a_layer_that_cannot_have_an_adapter_is_said(kind: str, targets: str | list[str], said: str) -> None:
    with pytest.raises(UserError) as error:
        add_adapters(make_tiny(kind), settings(method="lora", lora_targets=targets))
    assert str(error.value).startswith("params.yaml: finetune.lora_targets: ")
    assert said in str(error.value)


def test_an_output_layer_of_its_own_can_have_one(tmp_path: Path) -> None:
    folder = tmp_path / "untied"
    make_tiny("llama").save_pretrained(folder)
    training = trained(folder, tmp_path / "state", method="lora", lora_targets=["lm_head", "embed_tokens"])
    best = training.history.best
    assert best.step > 0
    export(tmp_path / "merged", folder, folder, training.settings, training.history.best_weights, {})
    found = validate(load(tmp_path / "merged"), data().validation, CPU).response_loss
    assert found == pytest.approx(best.validation_loss, rel=1e-6)


def test_adapters_count_alpha_over_rank_times() -> None:
    """Twice the rank at twice alpha weighs the same."""
    scales = []
    for rank, alpha in ((4, 8), (8, 16), (4, 4)):
        model = make_tiny("llama")
        add_adapters(model, settings(method="lora", lora_rank=rank, lora_alpha=alpha))
        layer: Any = model.get_submodule("model.layers.0.self_attn.q_proj")
        assert layer.lora_A["default"].weight.shape == (rank, 32)
        scales.append(layer.scaling["default"])
    assert scales == [2, 2, 1]


def test_dropout_of_adapters_changes_training_and_not_validation(tiny_llama: Path) -> None:
    without, dropped = (train(tiny_llama, method="lora", lora_dropout=share, **CHANGES).rows for share in (0.0, 0.5))
    assert dropped[0].validation_loss == without[0].validation_loss
    assert dropped[-1].train_loss != without[-1].train_loss
    model = make_tiny("llama")
    add_adapters(model, settings(method="lora", lora_dropout=0.5))
    assert torch.equal(logits_of(model), logits_of(model))


def test_without_a_gpu_qlora_is_refused(tiny_llama: Path) -> None:
    with pytest.raises(UserError, match=r"finetune\.method: qlora needs a CUDA GPU and .* take lora here$"):
        load_plain(tiny_llama, settings(method="qlora"), torch.bfloat16, CPU)
