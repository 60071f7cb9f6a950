"""A tiny random model with a tokenizer of its own, trained here: what tests use where the default model is too slow."""

import os

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ["HF_HUB_OFFLINE"] = "1"

import fcntl
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer as OwnTokenizer
from tokenizers import decoders, models, pre_tokenizers, trainers

ROOT = Path(__file__).parent.parent
LONGEST = ROOT / "tests/pipeline"
MAKER = LONGEST / "test_repro.py"
"""Makes the fixture `finished`, for which others would wait."""
CONTROL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes longest first, so that no process of tests is alone at the end; what has to wait, later."""
    waiting = {item.path for item in items if "finished" in getattr(item, "fixturenames", ())}
    items.sort(key=lambda item: (item.path != MAKER, not item.path.is_relative_to(LONGEST), item.path in waiting))


def make_tokenizer(folder: Path, *, digits_apart: bool = True) -> None:
    """Write tokenizer.json and tokenizer_config.json of a byte-level BPE trained on the shipped data."""
    steps: list[Any] = [pre_tokenizers.Digits(individual_digits=True)] if digits_apart else []
    tokenizer = OwnTokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*steps, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    if not digits_apart:
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1000, special_tokens=CONTROL_TOKENS, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    rows = [json.loads(line) for line in (ROOT / "data/raw/instructions.jsonl").open(encoding="utf-8")]
    tokenizer.train_from_iterator((f"{r['instruction']}\n{r['input']}\n{r['output']}" for r in rows), trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|im_end|>"}))


def make_model(folder: Path, kind: str = "llama") -> None:
    """Write a random model of two layers, a Llama or a GPT-2, with its tokenizer."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

    folder.mkdir(parents=True, exist_ok=True)
    make_tokenizer(folder, digits_apart=kind == "llama")
    torch.manual_seed(0)
    model: Any
    if kind == "llama":
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=1000,
                hidden_size=32,
                intermediate_size=64,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=2,
                max_position_embeddings=256,
                tie_word_embeddings=True,
                bos_token_id=1,
                eos_token_id=2,
            )
        )
    else:
        config = GPT2Config(vocab_size=1000, n_positions=256, n_embd=32, n_layer=2, n_head=4, eos_token_id=2)
        config.attn_pdrop = config.resid_pdrop = config.embd_pdrop = 0.0
        model = GPT2LMHeadModel(config)
    model.save_pretrained(folder)


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny Llama that cuts each digit out on its own."""
    folder = tmp_path_factory.mktemp("models") / "llama"
    make_model(folder, "llama")
    return folder


@pytest.fixture(scope="session")
def tiny_gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny GPT-2."""
    folder = tmp_path_factory.mktemp("models") / "gpt2"
    make_model(folder, "gpt2")
    return folder


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """A project in which `dvc repro` has run, with its cache, store and commits: made once for all processes of tests.

    It is to be read alone; `copy_of_finished` gives one to change.
    """
    from tests.pipeline.projects import make_finished_project

    shared = tmp_path_factory.getbasetemp()
    if worker_id != "master":
        shared = shared.parent
    project, done = shared / "finished", shared / "finished.done"
    with (shared / "finished.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            shutil.rmtree(project, ignore_errors=True)
            make_model(shared / "finished_model", "llama")
            make_finished_project(project, shared / "finished_model")
            done.touch()
    return project


@pytest.fixture(scope="session")
def copy_of_finished(finished: Path) -> Callable[[Path], Path]:
    """A function that copies the finished project to a folder that is not there yet, without its MLflow store."""

    def copy(to: Path) -> Path:
        shutil.copytree(finished, to, symlinks=True, ignore=shutil.ignore_patterns("mlflow.db*", "mlartifacts"))
        return to

    return copy
