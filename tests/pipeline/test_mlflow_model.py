"""The checkpoint as MLflow's logged model: it is served with the template of its training, and not copied."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import pytest
from transformers import pipeline

from stages.instructions.instruction import Instruction
from stages.instructions.jinja_templates import find_template
from stages.instructions.prompts import TemplateMark, make_prompt, write_prompts
from stages.instructions.templates import TEMPLATES, Template
from stages.pipeline.tracking_files import Files, read_params
from stages.pipeline.tracking_model import UPLOAD, log_model, training_prompt
from stages.pipeline.tracking_store import Store, open_store
from tests.pipeline.projects import set_parameter
from tests.pipeline.stages_alone import Project
from tests.pipeline.stores import make_store, models_of, serving

ASKED = ["Say {this} twice.", "Count to three."]


@pytest.fixture
def files(tmp_path: Path, tiny_llama: Path) -> Iterator[Files]:
    """A checkpoint and what it was trained on, beside an empty store."""
    Project(tmp_path, tiny_llama)
    set_parameter(tmp_path, "generate.max_new_tokens", 5)
    set_parameter(tmp_path, "generate.repetition_penalty", 3.0)  # else a random model repeats the prompt's last token
    checkpoint = tmp_path / "data/checkpoint"
    shutil.rmtree(checkpoint)
    shutil.copytree(tiny_llama, checkpoint)
    write_rows(tmp_path, TEMPLATES["chatml"], ("Translate.", "un"), ("Say hello.", ""))
    make_store(tmp_path)
    before = dict(os.environ)
    os.environ["DVC_ROOT"] = str(tmp_path)
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    yield Files.under(tmp_path)
    mlflow.set_tracking_uri("")
    os.environ.clear()
    os.environ.update(before)


def write_rows(folder: Path, template: Template, *rows: tuple[str, str]) -> None:
    prompts = [
        make_prompt(Instruction(instruction, "x", input=input, file="a", line=at), template)
        for at, (instruction, input) in enumerate(rows)
    ]
    mark = TemplateMark(template.name, template.hash, template.end)
    write_prompts(folder / "data/split/train.parquet", prompts, mark)


def logged(files: Files) -> tuple[Store, Any]:
    """Log the model twice; the store and what is there then."""
    store = open_store()
    run_id = store.new_run("finetune", {"kind": "finetune"})
    for _ in range(2):
        log_model(store, run_id, files, read_params(files.params), "a/b:c", "dvc get it")
    (model,) = models_of(os.environ.get("MLFLOW_TRACKING_URI", f"sqlite:///{files.params.parent}/mlflow.db"))
    return store, model


def expected(checkpoint: Path, form: str = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n") -> list[str]:
    """What transformers' own pipeline answers; MLflow strips it."""
    generate: Any = pipeline("text-generation", str(checkpoint))
    how = {"max_new_tokens": 5, "do_sample": False, "repetition_penalty": 3.0, "return_full_text": False}
    return [str(generate(form.format(text), **how)[0]["generated_text"]).strip() for text in ASKED]


def test_it_is_served_over_http_with_the_template_of_its_training(files: Files) -> None:
    _, model = logged(files)
    folder = Path(model.artifact_location.removeprefix("file://"))
    assert (folder / "model/model.safetensors").samefile(files.checkpoint / "model.safetensors")
    want = expected(folder / "model")
    assert all(want)
    assert want != expected(folder / "model", "{}"), "the template tells"
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "models", "serve", "--env-manager", "local", "-m", str(folder)]
    with subprocess.Popen(
        [*command, "-p", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    ) as server:
        try:
            assert answer(f"http://127.0.0.1:{port}/invocations", {"inputs": ASKED}) == {"predictions": want}
        finally:
            os.killpg(server.pid, 15)


def answer(url: str, asked: Any) -> Any:
    request = urllib.request.Request(url, json.dumps(asked).encode(), {"Content-Type": "application/json"})
    for _ in range(240):
        try:
            return json.load(urllib.request.urlopen(request))
        except (urllib.error.URLError, ConnectionError):  # it is not up yet
            time.sleep(0.25)
    raise AssertionError("it never answers")


def test_a_store_elsewhere_is_told_where_the_weights_are_and_gets_them_when_asked(
    files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifacts = tmp_path / "artifacts"
    with serving(f"sqlite:///{tmp_path}/mlflow.db", artifacts) as (address, _):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        store, model = logged(files)
        assert model.tags["weights.where"] == "dvc get it"
        assert model.tags["mlflow.model.isExternal"] == "true"
        assert list(artifacts.rglob("*.safetensors")) == []
        store.client.delete_logged_model(model.model_id)
        monkeypatch.setenv(UPLOAD, "1")
        _, model = logged(files)
        loaded = mlflow.pyfunc.load_model(f"models:/{model.model_id}")
        assert loaded.predict(ASKED) == expected(files.checkpoint)
        assert loaded.metadata.signature is not None
        assert loaded.input_example == ["Say hello."]


def test_the_template_is_that_of_lone_instructions(tmp_path: Path) -> None:
    (tmp_path / "data/split").mkdir(parents=True)
    train = tmp_path / "data/split/train.parquet"
    assert training_prompt(train)[0] is None
    write_rows(tmp_path, TEMPLATES["alpaca"], ("Translate.", "un"))
    assert training_prompt(train)[0] is None, "every row has an input"
    write_rows(tmp_path, TEMPLATES["alpaca"], ("Translate.", "un"), ("Say hello.", ""))
    prompt, example = training_prompt(train)
    assert prompt is not None
    assert prompt.endswith("### Instruction:\n{prompt}\n\n### Response:\n")
    assert example == "Say hello."
    (tmp_path / "braces.jinja").write_text("{'{'}{{ '{a}' }}{{ instruction }}=>")
    write_rows(tmp_path, find_template("braces.jinja", tmp_path, tmp_path), ("Say hello.", ""))
    prompt, _ = training_prompt(train)
    assert prompt is not None
    assert prompt.format(prompt="x") == "{'{'}{a}x=>"
