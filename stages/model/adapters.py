"""LoRA (arXiv 2106.09685), DoRA (2402.09353) and QLoRA (2305.14314), by peft."""

import json
from pathlib import Path

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
        UserError: no layer has a name that `lora_targets` lists.
    """
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=settings.lora_rank,
        lora_alpha=settings.lora_alpha,  # type: ignore[arg-type]
        lora_dropout=settings.lora_dropout,
        target_modules=settings.lora_targets,
        use_dora=settings.method == "dora",
    )
    try:
        adapted = get_peft_model(model, config, autocast_adapter_dtype=False)
    except ValueError as error:
        raise UserError(f"params.yaml: finetune.lora_targets: {str(error).split('. ')[0]}") from None
    assert isinstance(adapted, PeftModel)
    return adapted


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
