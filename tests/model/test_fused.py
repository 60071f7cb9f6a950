"""Fused layers are the layers of transformers: the same results, the same gradients, and no model of another kind."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import PreTrainedModel

from stages.model import fused, kernels
from stages.model.batches import make_batch
from stages.model.fused import can_fuse, fuse
from stages.model.loss import has_plain_head, token_losses
from stages.model.optimizer import MasterWeights
from stages.tokens.arrays import TokenArrays
from tests.model.making import CPU, arrays, data, examples, greedy
from tests.model.tiny_models import make_tiny

KINDS: list[tuple[str, dict[str, Any]]] = [
    ("llama", {}),
    ("llama", {"head_dim": 16, "num_key_value_heads": 4, "tie_word_embeddings": True}),
    ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}}),
    ("mistral", {}),
    ("mistral", {"num_attention_heads": 8, "num_key_value_heads": 1, "hidden_size": 48, "head_dim": 8}),
]
"""Grouped and single key heads, heads wider or narrower than the model, slower positions."""


@pytest.fixture(autouse=True)
def _eager_again() -> Iterator[None]:
    yield
    kernels.use_compiled(False)


def rows() -> TokenArrays:
    """Of long and short examples."""
    return arrays(examples(20, longest=150), width=256)


def pass_through(model: PreTrainedModel, micro_batches: list[list[int]]) -> Tensor:
    """The loss summed over micro-batches, after a backward pass of each."""
    total = torch.zeros(())
    for chosen in micro_batches:
        batch = make_batch(rows(), chosen, CPU)
        losses = token_losses(model, batch, batch.next_ids).objective.sum() / 100
        losses.backward()
        total += losses.detach()
    return total


def gradients(model: PreTrainedModel, micro_batches: list[list[int]]) -> dict[str, Tensor]:
    """Of that loss, with the loss itself."""
    model.zero_grad()
    total = pass_through(model, micro_batches)
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    assert len(found) == len(list(model.parameters()))
    return found | {"loss": total}


def check_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        largest = float(expected[name].abs().max())
        torch.testing.assert_close(tensor, expected[name], rtol=1e-4, atol=1e-5 * largest, msg=name)


@pytest.mark.parametrize(("kind", "changes"), KINDS)
@pytest.mark.parametrize("kept_length", [256, 40, 0])
def test_gradients_are_those_of_transformers(
    kind: str, changes: dict[str, Any], kept_length: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of every parameter, whether the probabilities of all examples are kept, of short ones, or of none."""
    monkeypatch.setattr(fused, "KEPT_LENGTH", kept_length)
    plain, model = make_tiny(kind, **changes), make_tiny(kind, **changes)
    fuse(model)
    check_same(gradients(model, [[0, 1]]), gradients(plain, [[0, 1]]))


def test_the_embedding_of_padding_is_not_trained() -> None:
    """Nor does torch train it, wherever else that token stands."""
    padding = int(rows().input_ids[0, 5])
    plain, model = make_tiny("llama", pad_token_id=padding), make_tiny("llama", pad_token_id=padding)
    fuse(model)
    found = gradients(model, [[0]])
    check_same(found, gradients(plain, [[0]]))
    assert not found["model.embed_tokens.weight"][padding].any()


def test_gradients_of_micro_batches_add_up() -> None:
    plain, model = make_tiny("llama"), make_tiny("llama")
    fuse(model)
    check_same(gradients(model, [[0], [1, 2], [3]]), gradients(plain, [[0, 1, 2, 3]]))


@pytest.mark.skipif(not kernels.can_compile(), reason="no C++ compiler")
def test_gradients_are_the_same_compiled() -> None:
    plain, model = make_tiny("llama"), make_tiny("llama")
    fuse(model)
    kernels.use_compiled(True)
    check_same(gradients(model, [[0], [1, 2, 3]]), gradients(plain, [[0], [1, 2, 3]]))


def test_checkpointed_layers_are_computed_twice_to_the_same_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, model = make_tiny("llama").train(), make_tiny("llama").train()
    fuse(model)
    assert has_plain_head(model)  # which it finds out by passes of its own
    model.activation_checkpointing_enable()
    passes, own = [], kernels.swiglu

    def counted(gate: Tensor, up: Tensor) -> Tensor:
        passes.append(len(gate))
        return own(gate, up)

    monkeypatch.setattr(kernels, "swiglu", counted)
    check_same(gradients(model, [[0], [1, 2]]), gradients(plain, [[0], [1, 2]]))
    assert len(passes) == 2 * 2 * 2, "two layers, two micro-batches, each once more in the backward pass"


def test_bfloat16_is_no_further_from_float32_than_transformers_is() -> None:
    exact = gradients(make_tiny("llama"), [[0, 1, 2]])
    plain, model = make_tiny("llama").bfloat16(), make_tiny("llama").bfloat16()
    fuse(model)

    def distance(found: dict[str, Tensor]) -> float:
        squares = [float(((found[name].float() - exact[name]) ** 2).sum() / (exact[name] ** 2).sum()) for name in exact]
        return sum(squares) / len(squares)

    assert distance(gradients(model, [[0, 1, 2]])) < 1.2 * distance(gradients(plain, [[0, 1, 2]]))


@pytest.mark.parametrize("tied", [True, False])
def test_masters_get_the_gradients_of_all_micro_batches(tied: bool) -> None:
    """Past autograd; and nothing of the step before."""
    plain, model = (make_tiny("llama", tie_word_embeddings=tied).bfloat16() for _ in range(2))
    fuse(model)
    masters = MasterWeights(model, optimizer="SGD", weight_decay=0.0, options={})
    micro_batches, names = [[3], [0, 2], [1]], [name for name, _ in model.named_parameters()]
    expected: dict[str, Tensor] = {}
    for chosen in micro_batches:
        for name, gradient in gradients(plain, [chosen]).items():
            expected[name] = expected.get(name, 0) + gradient.float()
    for _ in range(2):
        pass_through(model, micro_batches)
        masters.gradient_norm()
        for name, master in zip(names, masters._masters, strict=True):
            assert master.grad is not None
            distance = (master.grad - expected[name]).norm() / expected[name].norm()
            assert distance < 0.03, name
        masters.step(0.0, 1.0, 1.0)
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("mode", ["evaluating", "without gradients"])
def test_losses_are_the_same(mode: str) -> None:
    plain, model = make_tiny("mistral"), make_tiny("mistral")
    fuse(model)
    batch = make_batch(data().validation, [0, 1, 2], CPU)
    with torch.set_grad_enabled(mode == "evaluating"):
        found, expected = (token_losses(m, batch, batch.next_ids).nll for m in (model, plain))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("gpt2", {}),
        ("qwen2", {}),
        ("qwen3", {"head_dim": 8}),
        ("llama", {"attention_bias": True}),
        ("llama", {"mlp_bias": True}),
        ("llama", {"hidden_act": "gelu"}),
        ("llama", {"attention_dropout": 0.1}),
        ("mistral", {"sliding_window": 16}),
    ],
)
def test_a_model_of_another_kind_cannot_be_fused(kind: str, changes: dict[str, Any]) -> None:
    assert not can_fuse(make_tiny(kind, **changes))


def test_a_model_with_adapters_cannot_be_fused() -> None:
    model = make_tiny("llama")
    assert can_fuse(model)
    get_peft_model(model, LoraConfig(target_modules=["v_proj"]))
    assert not can_fuse(model)


def test_one_layer_of_another_kind_is_enough() -> None:
    model: Any = make_tiny("llama")
    model.model.layers[1].mlp.up_proj = torch.nn.Linear(32, 64, bias=True)
    assert not can_fuse(model)


def test_answers_are_those_of_the_unfused_model() -> None:
    """Generation has a cache and no blocks, and goes through the layers' own forward."""
    prompts = [data().validation.input_ids[0, :size].tolist() for size in (3, 20, 11)]
    plain, model = make_tiny("llama"), make_tiny("llama")
    fuse(model)
    answers = []
    for one in (plain, model):
        one.set_attn_implementation("sdpa")
        answers.append(greedy(one, prompts, 12, end_of_text=2))
    assert answers[0] == answers[1]
