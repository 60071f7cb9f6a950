"""Models that cannot be used are named, whichever file is broken."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from stages.model.checkpoint import load_model
from stages.model.importing import import_model
from stages.pipeline.errors import UserError

VERSION = b"GGUF\x03\0\0\0"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"GGUF",
        VERSION,
        VERSION + b"\x05\0\0\0\0\0\0\0" * 2 + b"cut",
        b"<html>not found</html>",
    ],
)
def test_a_gguf_file_that_is_none_or_cut_off(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"^base_model\.source: {path} is not a GGUF file "):
        import_model(path, tmp_path)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_a_folder_that_lacks_a_file(tmp_path: Path, name: str) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    target.mkdir()
    save_file({"a": np.zeros(1, np.float32)}, source / "model.safetensors")
    for other in {"config.json", "tokenizer.json"} - {name}:
        (source / other).write_text("{}")
    with pytest.raises(UserError, match=rf"^base_model\.source: {source} lacks {name}; "):
        import_model(source, target)
    assert list(target.iterdir()) == []


@pytest.mark.parametrize("damage", ["cut weights", "no weights", "no config", "unknown model type"])
def test_a_model_that_cannot_be_loaded(tiny_llama: Path, tmp_path: Path, damage: str) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_llama, folder)
    weights, config = folder / "model.safetensors", folder / "config.json"
    if damage == "cut weights":
        weights.write_bytes(weights.read_bytes()[:-1000])
    elif damage == "no weights":
        weights.unlink()
    elif damage == "no config":
        config.unlink()
    else:
        config.write_text(json.dumps(json.loads(config.read_text()) | {"model_type": "unheard-of"}))
    with pytest.raises(UserError, match=rf"^{folder}: cannot load a model \(.+\); rerun the stage that writes it$"):
        load_model(folder, torch.float32, torch.device("cpu"))
