"""The loss: packed as alone, whatever the micro-batches, and nowhere else than it should be."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from stages.model import attention
from stages.model.attention import make_blocks
from stages.model.batches import make_batch
from stages.model.checkpoint import load_model
from stages.model.loss import token_losses
from stages.model.training import MasterWeights, train_step
from stages.model.validation import label_losses, validate
from stages.tokens.arrays import TokenArrays, collate
from stages.tokens.labels import Examples
from stages.tokens.packing import pack
from tests.tokens.examples import END, make_examples

CPU = torch.device("cpu")


def examples(count: int, seed: int = 0) -> Examples:
    """Random examples of 2 to 58 positions, the latter part of each a response; every third has an earlier one too."""
    dice = np.random.default_rng(seed)
    tokens, in_response = [], []
    for number in range(count):
        tokens.append([*dice.integers(3, 1000, dice.integers(2, 59)).tolist(), END])
        prompt = int(dice.integers(1, len(tokens[-1]) - 1))
        earlier = range(prompt // 4, prompt // 2) if number % 3 == 0 else ()
        in_response.append([at >= prompt or at in earlier for at in range(len(tokens[-1]))])
    return make_examples(tokens, in_response)


def arrays(made: Examples, strategy: str, mask_instruction: bool = True) -> TokenArrays:
    row_of = pack(made.lengths, 128) if strategy == "pack" else np.arange(len(made.lengths))
    ids = [str(i) for i in range(len(row_of))]
    return collate(made, row_of, ids, end_of_text=END, mask_instruction=mask_instruction)


@pytest.fixture(params=["tiny_llama", "tiny_gpt2"])
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    return load_model(request.getfixturevalue(request.param), torch.float32, CPU, attention=attention.NAME)


def test_a_packed_example_has_the_loss_it_has_alone(model: PreTrainedModel) -> None:
    """Against the model's own loss on each example, with transformers' own attention and nothing of ours around it."""
    made = examples(12)
    packed = validate(model, arrays(made, "pack"), CPU)
    padded = validate(model, arrays(made, "pad"), CPU)
    for i, (start, stop) in enumerate(pairwise(made.offsets)):
        tokens = torch.tensor([made.tokens[start:stop].tolist()])
        in_response = made.in_response[start + 1 : stop]
        logits = model(input_ids=tokens).logits[0, :-1]
        alone = torch.nn.functional.cross_entropy(logits, tokens[0, 1:], reduction="none").detach().numpy()
        assert packed.full[i] == pytest.approx(alone.sum(), rel=1e-4)
        assert packed.response[i] == pytest.approx(alone[in_response].sum(), rel=1e-4)
        assert packed.response_tokens[i] == in_response.sum()
    assert padded.full == pytest.approx(packed.full, rel=1e-4)
    assert label_losses(model, arrays(made, "pack"), CPU) == pytest.approx(
        packed.response / packed.response_tokens, rel=1e-4
    )


def test_blocks_give_the_gradient_of_the_mask(model: PreTrainedModel) -> None:
    """Our attention gathers tokens and back by hand: its gradient is held against the plain masked one."""
    batch = make_batch(arrays(examples(9), "pack"), [0, 1], CPU)
    gradients = []
    for variant in (batch, batch._replace(blocks=None)):  # type: ignore[arg-type]
        model.zero_grad()
        token_losses(model, variant, variant.labels)[0].mean().backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], rtol=1e-3, atol=1e-6)


def test_every_token_has_one_slot() -> None:
    positions = torch.tensor([[0, 1, 2, 0, 1, 0], [0, 0, 1, 2, 3, 4]])
    blocks = make_blocks(positions)
    tokens = torch.arange(positions.numel())
    assert torch.equal(blocks.there[blocks.back], tokens)
    assert torch.equal(torch.sort(blocks.there[~blocks.repeats]).values, tokens)
    assert sum(count * length for count, length in blocks.shapes) == len(blocks.there)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_accumulation_does_not_change_the_trajectory(tiny_llama: Path, dtype: torch.dtype) -> None:
    """1 x 8, 2 x 4 and 8 x 1 rows: the loss is a sum over tokens divided once, so only rounding may differ."""
    data = arrays(examples(40), "pad")
    trajectories = []
    for micro_batch_size in (8, 4, 1):
        model = load_model(tiny_llama, dtype, CPU, attention=attention.NAME)
        model.train()
        masters = MasterWeights(model, 0.0)
        losses = []
        for step in range(4):
            loss, count = train_step(model, masters, data, list(range(step * 8, step * 8 + 8)), micro_batch_size)
            masters.step(1e-3, 1.0)
            losses.append(loss / count)
        trajectories.append(losses)
    tolerance = 1e-5 if dtype == torch.float32 else 5e-3
    assert trajectories[1] == pytest.approx(trajectories[0], rel=tolerance)
    assert trajectories[2] == pytest.approx(trajectories[0], rel=tolerance)
    assert trajectories[0][-1] < trajectories[0][0]


def test_masters_keep_updates_too_small_for_bfloat16(tiny_llama: Path) -> None:
    model = load_model(tiny_llama, torch.bfloat16, CPU, attention=attention.NAME)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    masters = MasterWeights(model, 0.0)
    data = arrays(examples(8), "pad")
    train_step(model, masters, data, list(range(8)), 8)
    masters.step(1e-6, 1.0)
    unmoved = [name for name, p in model.named_parameters() if p.dim() == 1 and torch.equal(p, before[name])]
    assert unmoved, "norm weights of 1 cannot show a step of 1e-6 in bfloat16"
    for _ in range(10_000):
        if not any(torch.equal(p, before[name]) for name, p in model.named_parameters() if name == unmoved[0]):
            break
        for master, weight in zip(masters._masters, masters._weights, strict=True):
            master.grad = torch.ones_like(weight, dtype=torch.float32)
        masters.step(1e-6, 1e9)
    else:
        pytest.fail("ten thousand small updates were lost")
