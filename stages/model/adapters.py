"""LoRA (arXiv 2106.09685), DoRA (2402.09353) and QLoRA (2305.14314), by peft."""

import json
from pathlib import Path
from typing import Any, cast

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import PreTrainedModel

from stages.model.settings import FinetuneParams
from stages.pipeline.errors import UserError
from stages.pipeline.files import read_json, write_text

SUBFOLDER = "adapter"


def add_adapters(model: PreTrainedModel, settings: FinetuneParams) -> PeftModel:
    """Freeze the weights of `model` and put adapters beside its linear layers, in place.

    Raises:
        UserError: no layer has a name that `lora_targets` lists, or its weights are shared with another layer.
    """
    targets = settings.lora_targets
    if targets != "all-linear":
        targets = [targets] if isinstance(targets, str) else targets
        _check_targets(model, targets)
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=settings.lora_rank,
        lora_alpha=settings.lora_alpha,  # type: ignore[arg-type]
        lora_dropout=settings.lora_dropout,
        target_modules=targets,
        use_dora=settings.method == "dora",
    )
    try:
        adapted = get_peft_model(model, config, autocast_adapter_dtype=False)
    except ValueError as error:
        raise UserError(f"params.yaml: finetune.lora_targets: {str(error).split('. ')[0]}") from None
    assert isinstance(adapted, PeftModel)
    return adapted


def _check_targets(model: PreTrainedModel, targets: list[str]) -> None:
    ends = [cast(Any, model.get_input_embeddings()), cast(Any, model.get_output_embeddings())]
    tied = ends if ends[0].weight is ends[1].weight else []
    matrices = {
        name: layer for name, layer in model.named_modules() if getattr(layer, "weight", torch.empty(0)).dim() == 2
    }
    for target in targets:
        meant = [layer for name, layer in matrices.items() if f".{name}".endswith(f".{target}")]
        if not meant:
            known = ", ".join(sorted({name.split(".")[-1] for name, layer in matrices.items() if layer not in tied}))
            raise UserError(
                f"params.yaml: finetune.lora_targets: no layer is named {target}; known: {known}, or all-linear"
            )
        if any(layer in tied for layer in meant):
            raise UserError(
                f"params.yaml: finetune.lora_targets: {target}: embeddings and output layer are one matrix in this "
                "model, and an adapter cannot be merged into one of them alone; leave it out"
            )


def save_adapter(folder: Path, adapted: PeftModel) -> None:
    """Write the adapter by itself, as peft reads it."""
    adapted.save_pretrained(str(folder))
    (folder / "README.md").unlink(missing_ok=True)
    config = read_json(folder / "adapter_config.json")
    for name, value in config.items():
        if isinstance(value, list) and all(isinstance(item, str) for item in value):
            config[name] = sorted(value)  # peft writes sets in the order of the day
    write_text(folder / "adapter_config.json", json.dumps(config, indent=2, sort_keys=True) + "\n")


def merged(adapted: PeftModel) -> PreTrainedModel:
    """The model with its adapters added to the weights."""
    with torch.no_grad():
        model = adapted.merge_and_unload()
    assert isinstance(model, PreTrainedModel)
    return model
