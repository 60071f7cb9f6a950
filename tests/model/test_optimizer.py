"""Every optimizer trains float32 masters, takes its options, and goes on from its state as if nothing had been."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from stages.model.optimizer import MasterWeights, bytes_per_weight
from stages.model.settings import OptimizerName
from stages.pipeline.errors import UserError
from tests.model.making import load, settings, train

OPTIMIZERS = get_args(OptimizerName)
RATES = {"SGD": 0.5, "ASGD": 0.5, "Adadelta": 5.0, "Adafactor": 5e-2, "Rprop": 1e-3, "RAdam": 5e-2}
"""Where the rate that suits the others does nothing, or too much."""

NO_OPTIONS: Mapping[str, Any] = {}


def make_masters(
    model: PreTrainedModel, optimizer: str = "AdamW", weight_decay: float = 0.0, options: Mapping[str, Any] = NO_OPTIONS
) -> MasterWeights:
    return MasterWeights(model, optimizer=optimizer, weight_decay=weight_decay, options=options)


def leave_gradients(model: PreTrainedModel, step: int, size: float = 1.0) -> dict[str, Tensor]:
    """Random gradients of each weight, left as a backward pass leaves them."""
    dice = torch.Generator().manual_seed(step)
    left = {name: size * torch.randn(p.shape, generator=dice) for name, p in model.named_parameters()}
    sum((p * left[name].to(p.dtype)).sum() for name, p in model.named_parameters()).backward()  # type: ignore[union-attr]
    return left


def take_steps(model: PreTrainedModel, masters: MasterWeights, first: int, last: int) -> None:
    for step in range(first, last + 1):
        leave_gradients(model, step)
        masters.step(1e-2, masters.gradient_norm(), 1.0)


def weights_of(model: PreTrainedModel) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_optimizer_learns(tiny_llama: Path, optimizer: str) -> None:
    rate = RATES.get(optimizer, 5e-3)
    rows = train(tiny_llama, optimizer=optimizer, learning_rate=rate, weight_decay=0, early_stopping=False).rows
    assert rows[-1].train_loss < rows[0].train_loss - 0.05


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("optimizer", "options"),
    [*((name, {}) for name in OPTIMIZERS), ("AdamW", {"amsgrad": True}), ("SGD", {"momentum": 0.9, "nesterov": True})],
)
def test_from_its_state_it_goes_on_as_if_nothing_had_been(
    tiny_llama: Path, optimizer: str, options: dict[str, Any], dtype: torch.dtype
) -> None:
    model = load(tiny_llama, dtype)
    masters = make_masters(model, optimizer, options=options)
    take_steps(model, masters, 1, 3)
    tensors, values = masters.state()
    kept, plain = {name: tensor.clone() for name, tensor in tensors.items()}, json.loads(json.dumps(values))
    take_steps(model, masters, 4, 6)

    again = load(tiny_llama, dtype)
    restored = make_masters(again, optimizer, options=options)
    restored.restore(kept, plain)
    take_steps(again, restored, 4, 6)
    check_same_bytes(weights_of(again), weights_of(model))
    check_same_bytes(restored.state()[0], masters.state()[0])
    assert restored.state()[1] == masters.state()[1]


def check_same_bytes(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert [name for name in found if not torch.equal(found[name], expected[name])] == []


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_it_keeps_as_much_as_the_estimate_says(tiny_llama: Path, optimizer: str) -> None:
    """Of a matrix: a master, its gradient, and the optimizer's moments."""
    model = load(tiny_llama)
    masters = make_masters(model, optimizer, options={"momentum": 0.9} if optimizer == "SGD" else {})
    take_steps(model, masters, 1, 1)
    sizes = [p.numel() for p in model.parameters() if p.dim() == 2]
    moments = sum(
        tensor.numel()
        for name, tensor in masters.state()[0].items()
        if name.startswith("optimizer.") and tensor.dim() == 2 and 1 not in tensor.shape
    )
    assert bytes_per_weight(optimizer) == 4 * (2 + moments / sum(sizes))


@pytest.mark.parametrize(
    ("optimizer", "options"),
    [("SGD", {"momentum": 0.5}), ("AdamW", {"eps": 1e-2}), ("Adagrad", {"lr_decay": 0.1}), ("Adamax", {"eps": 1e-2})],
)
def test_a_step_is_torchs_own_on_the_clipped_gradient(
    tiny_llama: Path, optimizer: str, options: dict[str, Any]
) -> None:
    """With options, and another rate at each step."""
    model = load(tiny_llama)
    masters = make_masters(model, optimizer, options=options)
    plain = {name: torch.nn.Parameter(weight) for name, weight in weights_of(model).items()}
    peer = getattr(torch.optim, optimizer)(plain.values(), lr=1.0, weight_decay=0.0, **options)
    for step, rate in enumerate((0.1, 0.3)):
        left = leave_gradients(model, step)
        norm = torch.cat([gradient.flatten() for gradient in left.values()]).norm()
        assert masters.gradient_norm() == pytest.approx(float(norm))
        masters.step(rate, float(norm), max_grad_norm=2.0)
        for name, parameter in plain.items():
            parameter.grad = left[name] * min(1.0, 2.0 / float(norm))
        peer.param_groups[0]["lr"] = rate
        peer.step()
    for name, weight in weights_of(model).items():
        torch.testing.assert_close(weight, plain[name].detach(), rtol=1e-5, atol=1e-6)


def test_a_small_gradient_is_not_clipped(tiny_llama: Path) -> None:
    model = load(tiny_llama)
    masters, before = make_masters(model, "SGD"), weights_of(model)
    left = leave_gradients(model, 0, size=1e-6)
    masters.step(1.0, masters.gradient_norm(), max_grad_norm=1.0)
    for name, weight in weights_of(model).items():
        torch.testing.assert_close(weight, before[name] - left[name], rtol=0, atol=1e-8)


@pytest.mark.parametrize("kind", ["tiny_llama", "tiny_gpt2"])
def test_matrices_decay_and_norms_and_biases_do_not(kind: str, request: pytest.FixtureRequest) -> None:
    model = load(request.getfixturevalue(kind))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)  # biases start as 0, which cannot decay
    before, masters = weights_of(model), make_masters(model, weight_decay=0.5)
    masters.step(0.1, masters.gradient_norm(), 1.0)
    for name, weight in weights_of(model).items():
        torch.testing.assert_close(weight, before[name] * (0.95 if weight.dim() == 2 else 1))


def test_masters_keep_updates_too_small_for_bfloat16(tiny_llama: Path) -> None:
    """bfloat16 next to 1 has steps of 2^-7 downwards: a norm's weight moves after thousands of steps of 1e-6."""
    model = load(tiny_llama, torch.bfloat16)
    norm: Any = model.get_parameter("model.norm.weight")
    masters = make_masters(model, "SGD")
    for step in range(4000):
        norm.grad = None
        (norm.sum() * 1.0).backward()
        masters.step(1e-6, 1.0, 1e9)
        if step == 0:
            assert torch.equal(norm, torch.ones_like(norm)), "one step is too small to be seen"
    torch.testing.assert_close(norm.float(), torch.full((32,), 0.996), rtol=0, atol=0.002)


def test_bfloat16_gradients_are_added_up_in_float32(tiny_llama: Path) -> None:
    """256 + 1 is 256 in bfloat16, and so a large micro-batch would swallow the small ones after it."""
    model = load(tiny_llama, torch.bfloat16)
    norm: Any = model.get_parameter("model.norm.weight")
    masters = make_masters(model, "SGD")
    for size in (256.0, 1.0, 1.0):
        (norm.sum() * size).backward()
    assert masters.gradient_norm() == pytest.approx(258 * 32**0.5)
    assert norm.grad is None


def test_a_gradient_is_that_of_its_step_alone(tiny_llama: Path) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        model = load(tiny_llama, dtype)
        norm: Any = model.get_parameter("model.norm.weight")
        masters = make_masters(model, "SGD")
        for size in (3.0, 2.0, 0.0):
            if size:
                (norm.sum() * size).backward()
            assert masters.gradient_norm() == pytest.approx(size * 32**0.5)
            masters.step(1e-3, 1.0, 1e9)


@pytest.mark.parametrize("typed", [{"betas": [0.5, 0.6]}, {"eps": "1e-2"}, {"betas": ["5e-1", 0.999]}])
def test_options_reach_the_optimizer_also_as_yaml_reads_them(tiny_llama: Path, typed: dict[str, Any]) -> None:
    """YAML 1.1 takes 1e-2 for text."""
    rows, plain = (
        train(tiny_llama, optimizer_options=options, epochs=2, early_stopping=False).rows for options in (typed, {})
    )
    assert rows[0] == plain[0]
    assert rows[-1].train_loss != plain[-1].train_loss


@pytest.mark.parametrize(
    ("optimizer", "options", "said"),
    [
        ("AdamW", {"momentum": 0.9}, "AdamW does not take momentum here; known: betas, eps, amsgrad, maximize"),
        ("SGD", {"lr": 1.0, "weight_decay": 0.1}, "SGD does not take lr, weight_decay here"),
        ("AdamW", {"differentiable": True, "capturable": True}, "does not take capturable, differentiable here"),
        ("AdamW", {"betas": [0.9, 2]}, "AdamW: Invalid beta parameter at index 1: 2"),
        ("AdamW", {"betas": {"first": 1}}, "AdamW: "),
        ("SGD", {"momentum": "much"}, "SGD: "),
        ("SGD", {"nesterov": True}, "SGD: Nesterov momentum requires a momentum and zero dampening"),
        ("SGD", {"dampening": "much"}, "SGD: "),
        ("ASGD", {"lambd": "much"}, "ASGD: "),
        ("Rprop", {"step_sizes": 3}, "Rprop: "),
    ],
)
def test_an_option_that_it_does_not_take_is_said(
    tiny_llama: Path, optimizer: str, options: dict[str, Any], said: str
) -> None:
    with pytest.raises(UserError) as error:
        make_masters(load(tiny_llama), optimizer, 0.0, settings(optimizer_options=options).optimizer_options)
    assert str(error.value).startswith("params.yaml: finetune.optimizer_options: ")
    assert said in str(error.value)


def test_an_optimizer_without_weight_decay_refuses_it(tiny_llama: Path) -> None:
    model = load(tiny_llama)
    with pytest.raises(UserError, match=r"finetune\.weight_decay: Rprop has none; set it to 0"):
        make_masters(model, "Rprop", weight_decay=0.01)
    make_masters(model, "Rprop")
