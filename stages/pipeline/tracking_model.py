"""The checkpoint as MLflow's logged model, which `mlflow models serve` and `transformers.pipeline` load.

Its weights are not copied for every experiment: on this machine they are hard links to those of the checkpoint, which
nobody edits in place. A store elsewhere is told where they are, unless it is to have them (`UPLOAD`).
"""

import os
import platform
import re
import shutil
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import urlparse
from urllib.request import url2pathname

import yaml

from stages.pipeline.files import iterate_parquet, read_json, sha256_of, write_text
from stages.pipeline.tracking_files import Files, as_params
from stages.pipeline.tracking_store import Store
from stages.pipeline.tracking_views import NOTE

UPLOAD = "ONSET_UPLOAD_MODEL"
"""Environment variable: 1 uploads the weights to a store that is not on this machine."""

REQUIRED = ("mlflow", "torch", "transformers", "tokenizers", "accelerate", "pandas")
"""What serving it takes."""

Params = Mapping[str, Any]
Link = Callable[[Path, Path], None]
"""Makes the first a link to the second."""


def log_model(store: Store, run_id: str, files: Files, params: Params, label: str, where: str) -> None:
    """Log the checkpoint as what a run made; done again, it does nothing. `where`: a command that gets the weights."""
    if not (files.checkpoint / "config.json").is_file() or model_of(store, run_id):
        return
    from mlflow.entities import LoggedModelOutput

    for half in _models_of(store, run_id):  # as when it was killed
        store.client.delete_logged_model(half.model_id)
    weights = sorted(files.checkpoint.glob("*.safetensors"))
    about: dict[str, Any] = {
        "experiment_id": store.experiment_id,
        "name": re.sub(r"""[/:.%"']""", "-", label) or "fine-tuned",
        "source_run_id": run_id,
        "model_type": "fine-tuned",
        "tags": {f"weights.{path.name}.sha256": sha256_of(path) for path in weights} | {"weights.where": where},
        "params": as_params({name: value for name, value in params.items() if name.startswith("finetune.")}),
    }
    local = _local_folder(store.client.get_experiment(store.experiment_id).artifact_location)
    if weights and (_can_link(weights[0], local) if local else os.environ.get(UPLOAD, "0") not in ("", "0")):
        model_id = _log_whole(store, files, params, about)
        note = _how_to_serve(model_id)
    else:
        import mlflow

        model_id = mlflow.create_external_model(**about).model_id
        note = f"The weights are not in this store: `{where}`."
    store.client.set_logged_model_tags(model_id, {NOTE: note})
    store.client.log_outputs(run_id, [LoggedModelOutput(model_id, 0)])


def _log_whole(store: Store, files: Files, params: Params, about: Params) -> str:
    """Log a model with its weights; its id."""
    made = store.client.create_logged_model(**about)
    local = _local_folder(made.artifact_location)
    if local:
        _write(local, files, params, made.model_id, Path.hardlink_to)
    else:
        with TemporaryDirectory() as folder:
            _write(Path(folder), files, params, made.model_id, Path.symlink_to)
            store.client.log_model_artifacts(made.model_id, folder)
    store.client.finalize_logged_model(made.model_id, "READY")
    return str(made.model_id)


def _how_to_serve(model_id: str) -> str:
    return (
        f"`mlflow models serve --env-manager local -m models:/{model_id}` answers instructions "
        '(`{"inputs": ["..."]}` at `/invocations`); the prompt template of the training is applied. '
        "`transformers.pipeline` loads the folder `model` and takes whole prompts."
    )


def model_of(store: Store, run_id: str) -> str | None:
    """Id of the model that a run made; None: there is none that is whole."""
    return next((str(model.model_id) for model in _models_of(store, run_id) if str(model.status) == "READY"), None)


def _models_of(store: Store, run_id: str) -> list[Any]:
    return list(store.client.search_logged_models([store.experiment_id], f"source_run_id = '{run_id}'"))


def _local_folder(location: str) -> Path | None:
    """The folder that an artifact location is; None: it is not on this machine."""
    parts = urlparse(location)
    if parts.scheme == "file":
        return Path(url2pathname(parts.path))
    return Path(location) if not parts.scheme else None


def _can_link(weights: Path, folder: Path) -> bool:
    """Whether both lie on one file system that has hard links."""
    folder.mkdir(parents=True, exist_ok=True)
    trial = folder / "trial"
    try:
        trial.hardlink_to(weights.resolve())
        trial.unlink()
    except OSError:
        return False
    return True


def _write(folder: Path, files: Files, params: Params, model_id: str, link: Link) -> None:
    """Write MLflow's model folder, flavor `transformers`, with links to the weights.

    `mlflow.transformers.save_model` would load or copy them, and does not know the pipelines of transformers 5 by their
    paths. Keys are those of mlflow.transformers.flavor_config.
    """
    from mlflow import pyfunc
    from mlflow.models import Model
    from mlflow.models.utils import _save_example

    prompt_template, example = training_prompt(files.splits / "train.parquet")
    model = Model(model_id=model_id, signature=_signature(params))
    if prompt_template:
        model.metadata = {"prompt_template": prompt_template}
    _copy(files.checkpoint, folder / "model", link)
    _copy(files.checkpoint, folder / "components/tokenizer", link, "tokenizer*", "chat_template*")
    _save_example(model, [example], str(folder))
    model.add_flavor(
        "transformers",
        transformers_version=version("transformers"),
        task="text-generation",
        instance_type="TextGenerationPipeline",
        pipeline_model_type=read_json(files.checkpoint / "config.json")["architectures"][0],
        source_model_name="fine-tuned",
        model_binary="model",
        components=["tokenizer"],
        tokenizer_type="PreTrainedTokenizerFast",
        code=None,
    )
    pyfunc.add_to_model(
        model, loader_module="mlflow.transformers", python_env="python_env.yaml", model_config=_decoding(params)
    )
    write_text(folder / "requirements.txt", "".join(f"{name}=={version(name)}\n" for name in REQUIRED))
    python = {"python": platform.python_version(), "dependencies": ["-r requirements.txt"]}
    write_text(folder / "python_env.yaml", yaml.safe_dump(python))
    model.model_size_bytes = sum(path.stat().st_size for path in folder.rglob("*"))
    model.save(str(folder / "MLmodel"))


def _copy(checkpoint: Path, to: Path, link: Link, *patterns: str) -> None:
    """Files of a checkpoint, all or those of some names; its weights are links."""
    to.mkdir(parents=True, exist_ok=True)
    for path in sorted({path for pattern in patterns or ("*",) for path in checkpoint.glob(pattern)}):
        if path.suffix == ".safetensors":
            link(to / path.name, path.resolve())
        elif path.is_file():
            shutil.copyfile(path, to / path.name)


def _decoding(params: Params) -> dict[str, Any]:
    """How `generate` answers, in the words of transformers."""
    own = {name.removeprefix("generate."): value for name, value in params.items() if name.startswith("generate.")}
    sampling = {"temperature", "top_k", "top_p"} if float(own.get("temperature", 0)) > 0 else set()
    kept = {name: own[name] for name in {"max_new_tokens", "repetition_penalty"} | sampling if name in own}
    return dict(sorted(kept.items())) | {
        "do_sample": bool(sampling),
        "return_full_text": False,
        "add_special_tokens": False,  # the template has its own
    }


def _signature(params: Params) -> Any:
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema

    longest = int(params.get("generate.max_new_tokens", 128))
    return ModelSignature(
        inputs=Schema([ColSpec(DataType.string)]),
        outputs=Schema([ColSpec(DataType.string)]),
        params=ParamSchema([ParamSpec("max_new_tokens", DataType.long, longest)]),
    )


def training_prompt(train: Path) -> tuple[str | None, str]:
    """The prompt template as the training rows have it, with `{prompt}` for the instruction, and an instruction.

    None: no row is a lone instruction, and a model that is served takes its prompts as they are.
    """
    example = "Say hello."
    if not train.is_file():
        return None, example
    for batch in iterate_parquet(train, ["segments"], batch_size=256):
        for row in batch.to_pylist():
            roles = [segment["role"] for segment in row["segments"]]
            prompt = row["segments"][: roles.index("response")]
            users = [segment["text"] for segment in prompt if segment["role"] == "user"]
            if len(users) == 1 and roles.count("response") == 1:
                parts = [
                    "{prompt}" if part["role"] == "user" else part["text"].replace("{", "{{").replace("}", "}}")
                    for part in prompt
                ]
                return "".join(parts), users[0]
    return None, example
