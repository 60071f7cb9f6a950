"""The loss: packed as alone, with the gradient that belongs to it, and nowhere else than it should be."""

from collections.abc import Iterator
from itertools import pairwise
from typing import Any, cast

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from stages.model import attention, kernels, loss
from stages.model.attention import make_blocks
from stages.model.batches import make_batch
from stages.model.fused import fuse
from stages.model.loss import has_plain_head, token_losses
from stages.model.validation import label_losses, validate
from stages.tokens.labels import Examples
from tests.model.making import CPU, arrays, examples
from tests.model.tiny_models import make_tiny

KINDS = ("llama", "gpt2", "mistral")
UNUSUAL_HEADS: dict[str, dict[str, Any]] = {
    "phi": {},
    "cohere": {"logit_scale": 0.25},
    "granite": {"logits_scaling": 4.0},
    "gemma2": {"final_logit_softcapping": 2.0, "attn_logit_softcapping": None},
}
"""Models whose logits are more than a matrix product: with a bias, scaled up or down, capped softly."""


needs_compiler = pytest.mark.skipif(not kernels.can_compile(), reason="no C++ compiler")


@pytest.fixture(autouse=True)
def _eager_again() -> Iterator[None]:
    yield
    kernels.use_compiled(False)


@pytest.fixture(params=KINDS)
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    return make_tiny(request.param)


def alone(model: PreTrainedModel, made: Examples) -> list[torch.Tensor]:
    """The losses of all tokens of each example by itself, with transformers' own attention and no layer of ours."""
    model.set_attn_implementation("eager")
    losses = []
    for start, stop in pairwise(made.offsets):
        tokens = torch.tensor([made.tokens[start:stop].tolist()])
        logits = model(input_ids=tokens, use_cache=False).logits[0, :-1]
        losses.append(cross_entropy(logits, tokens[0, 1:], reduction="none"))
    model.set_attn_implementation(attention.NAME)
    return losses


@pytest.mark.parametrize(
    ("kind", "way"),
    [
        *((kind, "as it is") for kind in KINDS),
        *((kind, "fused") for kind in ("llama", "mistral")),
        *(pytest.param(kind, "compiled", marks=needs_compiler) for kind in ("llama", "mistral")),
    ],
)
def test_a_packed_example_has_the_loss_it_has_alone(kind: str, way: str) -> None:
    model, made = make_tiny(kind), examples(12)
    with torch.no_grad():
        expected = [losses.numpy() for losses in alone(model, made)]
    in_response = [made.in_response[start + 1 : stop] for start, stop in pairwise(made.offsets)]
    if way != "as it is":
        fuse(model)
    kernels.use_compiled(way == "compiled")
    for strategy in ("pack", "pad"):
        found = validate(model, arrays(made, strategy), CPU)
        assert found.full == pytest.approx([losses.sum() for losses in expected], rel=1e-4)
        assert found.response == pytest.approx(
            [losses[here].sum() for losses, here in zip(expected, in_response, strict=True)], rel=1e-4
        )
        assert found.response_tokens.tolist() == [here.sum() for here in in_response]
        assert found.full_tokens.tolist() == made.lengths.tolist()
        of_labels = label_losses(model, arrays(made, strategy), CPU)
        assert of_labels == pytest.approx(found.response / found.response_tokens, rel=1e-4)


def test_packed_rows_have_the_gradient_of_examples_alone(model: PreTrainedModel) -> None:
    """Our attention gathers tokens and takes them back by hand, and so does its backward pass."""
    made = examples(9)
    torch.cat(alone(model, made)).sum().backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    packed = arrays(made)
    batch = make_batch(packed, range(len(packed.input_ids)), CPU)
    token_losses(model, batch, batch.next_ids).objective.sum().backward()
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        largest = float(expected[name].abs().max())
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-5 * largest, msg=name)


def test_every_token_has_one_slot() -> None:
    positions = torch.tensor([[0, 1, 2, 0, 1, 0], [0, 0, 1, 2, 3, 4]])
    blocks = make_blocks(positions)
    tokens = torch.arange(positions.numel())
    assert torch.equal(blocks.there[blocks.back], tokens)
    assert torch.equal(torch.sort(blocks.there[~blocks.repeats]).values, tokens)
    assert sum(count * length for count, length in blocks.shapes) == len(blocks.there)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "mistral", *UNUSUAL_HEADS])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_losses_and_correct_tokens_are_those_of_all_logits(kind: str, label_smoothing: float) -> None:
    model = make_tiny(kind, **UNUSUAL_HEADS.get(kind, {}))
    assert has_plain_head(model) == (kind not in UNUSUAL_HEADS)
    packed = arrays(examples(9))
    batch = make_batch(packed, [0, 1], CPU)
    logits = model(input_ids=batch.input_ids, position_ids=batch.position_ids, blocks=batch.blocks).logits
    places = batch.labels >= 0
    logits, labels = logits[places], batch.labels[places]
    labels[::3] = logits[::3].argmax(1)  # a random model would never be right
    batch.labels[places] = labels
    found = token_losses(model, batch, batch.labels, label_smoothing)
    assert torch.equal(found.places, places)
    torch.testing.assert_close(found.nll, cross_entropy(logits, labels, reduction="none"), rtol=1e-5, atol=1e-5)
    expected = cross_entropy(logits, labels, reduction="none", label_smoothing=label_smoothing)
    torch.testing.assert_close(found.objective, expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(found.correct, logits.argmax(1) == labels)
    assert found.correct.sum() >= len(labels) // 3
    assert not found.nll.requires_grad
    assert found.objective.requires_grad


def test_a_soft_cap_is_seen_where_logits_are_too_small_to_show_it() -> None:
    """As in a model that is trained from scratch: 30 * tanh(0.1 / 30) is 0.1 to six digits."""
    assert not has_plain_head(make_tiny("gemma2", final_logit_softcapping=30.0))


def test_a_bias_is_seen_while_it_is_zero() -> None:
    """Else it would never be trained."""
    model: Any = make_tiny("phi")
    torch.nn.init.zeros_(model.lm_head.bias)
    assert not has_plain_head(model)


def test_looking_at_the_head_changes_nothing() -> None:
    model = make_tiny("llama").train()
    ids = torch.arange(4)[None]
    before = model(input_ids=ids, position_ids=ids, blocks=make_blocks(ids)).logits
    assert has_plain_head(model)
    assert model.training
    assert torch.equal(model(input_ids=ids, position_ids=ids, blocks=make_blocks(ids)).logits, before)


class Head:
    """Hidden states, output embeddings, labels, weights of the losses, and what plain torch makes of them."""

    def __init__(self, rows: int, label_smoothing: float, seed: int = 0, vocabulary: int = 50) -> None:
        dice = torch.Generator().manual_seed(seed)
        self.hidden = torch.randn(rows, 16, generator=dice, requires_grad=True)
        self.weight = torch.randn(vocabulary, 16, generator=dice, requires_grad=True)
        self.labels = torch.randint(vocabulary, (rows,), generator=dice)
        self.shares = torch.rand(rows, generator=dice)
        self.label_smoothing = label_smoothing
        expected = cross_entropy(
            self.hidden @ self.weight.t(), self.labels, reduction="none", label_smoothing=label_smoothing
        )
        self.losses = expected.detach()
        self.gradients = torch.autograd.grad(expected @ self.shares, [self.hidden, self.weight])

    def forward(self) -> torch.Tensor:
        objective: torch.Tensor = cast(Any, loss._HeadLoss).apply(
            self.hidden, self.weight, self.labels, self.label_smoothing
        )[0]
        torch.testing.assert_close(objective.detach(), self.losses, rtol=1e-5, atol=1e-5)
        return objective @ self.shares

    def backward(self, objective: torch.Tensor, **others: Any) -> None:
        self.hidden.grad = self.weight.grad = None
        objective.backward(**others)
        for leaf, gradient in zip((self.hidden, self.weight), self.gradients, strict=True):
            torch.testing.assert_close(leaf.grad, gradient, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize("kept", [2**26, 7 * 50, 1])
def test_the_head_has_the_loss_and_the_gradient_of_cross_entropy(
    label_smoothing: float, kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether all logits are kept, seven rows of them at a time, or one row though not even that is wanted."""
    monkeypatch.setattr(loss, "KEPT_LOGITS", kept)
    head = Head(23, label_smoothing)
    head.backward(head.forward())


def test_a_head_that_is_not_trained_has_no_gradient() -> None:
    head = Head(5, 0.0)
    head.weight.requires_grad_(False)
    head.forward().backward()
    torch.testing.assert_close(head.hidden.grad, head.gradients[0], rtol=1e-5, atol=1e-5)
    assert head.weight.grad is None


def test_logits_that_another_loss_took_the_place_of_are_computed_anew() -> None:
    """All logits share one piece of memory, so a backward pass may find other logits there, or its own gradient."""
    first, second = Head(9, 0.0), Head(30, 0.1, seed=1, vocabulary=40)
    one, other = first.forward(), second.forward()
    second.backward(other)
    first.backward(one)
    one, other = first.forward(), first.forward()
    first.backward(one)
    first.backward(other, retain_graph=True)
    first.backward(other)
    one = first.forward()
    first.backward(one, retain_graph=True)
    first.backward(one)
