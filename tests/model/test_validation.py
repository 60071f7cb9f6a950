"""Validation: a loss for each example, whoever computes it."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from stages.model.parallel import Ranks, shard
from stages.model.validation import ExampleLosses, label_losses, validate
from stages.tokens.arrays import TokenArrays
from tests.model.making import CPU, arrays, examples, load
from tests.model.several_processes import in_ranks

MADE = examples(30, seed=1)
PACKED = arrays(MADE)
ONE_ROW = arrays(examples(2))


def check_same(found: ExampleLosses, expected: ExampleLosses) -> None:
    for name, mine, theirs in zip(ExampleLosses._fields, found, expected, strict=True):
        assert mine.dtype == theirs.dtype
        if theirs.dtype == np.int64:
            assert np.array_equal(mine, theirs), name
        else:
            np.testing.assert_allclose(mine, theirs, rtol=1e-6, err_msg=name)


def test_each_example_has_the_figures_that_transformers_gives_it_alone(tiny_llama: Path) -> None:
    model = load(tiny_llama)
    model.eval()
    found = validate(model, PACKED, CPU)
    model.set_attn_implementation("sdpa")
    for number in range(len(PACKED.ids)):
        start, stop = MADE.offsets[number : number + 2]
        tokens = torch.from_numpy(MADE.tokens[start:stop].astype(np.int64))
        in_response = torch.from_numpy(MADE.in_response[start + 1 : stop])
        with torch.no_grad():
            logits = model(input_ids=tokens[None]).logits[0, :-1]
        nll = cross_entropy(logits, tokens[1:], reduction="none")
        assert found.full[number] == pytest.approx(float(nll.sum()), rel=1e-5)
        assert found.response[number] == pytest.approx(float(nll[in_response].sum()), rel=1e-5)
        assert found.full_tokens[number] == len(nll)
        assert found.response_tokens[number] == in_response.sum()
        assert found.response_correct[number] == (logits.argmax(1) == tokens[1:])[in_response].sum()


@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize(("world", "data"), [(2, PACKED), (4, PACKED), (2, ONE_ROW)])
def test_several_processes_find_what_one_finds(tiny_llama: Path, world: int, data: TokenArrays, sharded: bool) -> None:
    """Also where there are fewer rows than processes."""
    assert len(ONE_ROW.input_ids) == 1
    assert len(PACKED.input_ids) % 4, "the last rows do not go round"
    expected = validate(load(tiny_llama), data, CPU)

    def work(ranks: Ranks) -> ExampleLosses:
        model = load(tiny_llama)
        if sharded:
            shard(model, torch.float32)
        return validate(model, data, CPU, ranks)

    for found in in_ranks(world, work):
        check_same(found, expected)


def test_means_are_over_tokens_not_over_examples() -> None:
    losses = ExampleLosses(
        response=np.array([1.0, 6.0]),
        response_tokens=np.array([1, 4]),
        response_correct=np.array([1, 2]),
        full=np.array([2.0, 8.0]),
        full_tokens=np.array([2, 8]),
    )
    assert losses.response_loss == 7 / 5
    assert losses.response_accuracy == 3 / 5
    assert losses.full_loss == 10 / 10


def test_training_masks_do_not_matter_and_the_label_losses_are_those_of_the_masks(tiny_llama: Path) -> None:
    model = load(tiny_llama)
    unmasked = arrays(MADE, mask_instruction=False)
    masked, all_tokens = validate(model, PACKED, CPU), validate(model, unmasked, CPU)
    check_same(masked, all_tokens)
    assert label_losses(model, PACKED, CPU) == pytest.approx(masked.response / masked.response_tokens, rel=1e-6)
    assert label_losses(model, unmasked, CPU) == pytest.approx(masked.full / masked.full_tokens, rel=1e-6)


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_left_as_it_was(tiny_gpt2: Path, training: bool) -> None:
    """GPT-2 has dropout, which counts only while training."""
    model = load(tiny_gpt2)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    model.train(training)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    first, second = validate(model, PACKED, CPU), validate(model, PACKED, CPU)
    assert model.training == training
    assert np.array_equal(first.full, second.full), "no dropout"
    assert all(torch.equal(p, before[name]) and p.grad is None for name, p in model.named_parameters())
