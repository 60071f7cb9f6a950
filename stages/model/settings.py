"""Section `finetune` of params.yaml."""

from typing import Any, ClassVar, Literal

from pydantic import Field, ValidationInfo, field_validator

from stages.pipeline.params import Number, Params, Whole

OptimizerName = Literal[
    "AdamW", "Adam", "NAdam", "RAdam", "Adamax", "Adafactor", "Adagrad", "Adadelta", "RMSprop", "Rprop", "SGD", "ASGD"
]
"""Of torch.optim: all that take dense gradients of any shape and need no second look at the loss."""

_ANY_RATE = ("SGD", "ASGD", "Adadelta")
"""Those that multiply the rate by a gradient of any size; a step of the others is about as long as the rate itself."""


class FinetuneParams(Params):
    """Section `finetune` of params.yaml."""

    section: ClassVar[str] = "finetune"
    method: Literal["full", "lora", "dora", "qlora"]
    """What is trained: all weights, or adapters beside them."""
    lora_rank: Whole = Field(ge=1)
    """Rank of the adapters."""
    lora_alpha: Number = Field(gt=0)
    """Adapters count alpha / rank times."""
    lora_dropout: Number = Field(ge=0, lt=1)
    """Share of an adapter's inputs that is zeroed while training."""
    lora_targets: str | list[str]
    """Names of the layers that get adapters; all-linear: every one but the output layer."""
    init_from: str | None
    """Folder in data/init whose checkpoint training starts from; null: the base model."""
    optimizer: OptimizerName
    """A class of torch.optim."""
    optimizer_options: dict[str, Any]
    """Its other arguments."""
    learning_rate: Number = Field(gt=0)
    """At its peak."""
    schedule: Literal["constant", "linear", "cosine"]
    """How the rate goes down to 0 over all epochs."""
    warmup_fraction: Number = Field(ge=0, lt=1)
    """Share of all steps in which the rate rises to its peak."""
    epochs: Whole = Field(ge=1)
    """At most so many passes over the training rows."""
    batch_size: Whole = Field(ge=1)
    """Rows in one optimizer step, over all processes."""
    micro_batch_size: Whole = Field(ge=1)
    """Rows computed at once by one process; smaller needs less memory and changes nothing else."""
    weight_decay: Number = Field(ge=0)
    """On matrices only, not on norms and biases."""
    max_grad_norm: Number = Field(gt=0)
    """Gradients are clipped to this norm."""
    label_smoothing: Number = Field(ge=0, lt=1)
    """Share of each label that is spread over the vocabulary while training."""
    neftune_alpha: Number = Field(ge=0)
    """Strength of the noise on embeddings while training (arXiv 2310.05914); 0: none."""
    gradient_checkpointing: bool
    """Compute activations twice instead of keeping them."""
    precision: Literal["auto", "bf16", "fp32"]
    """Of matrix products; updates are always float32. auto: bf16 where the hardware has it."""
    compile: Literal["auto", "true", "false"]
    """Whether torch.compile fuses elementwise work; auto: where there is a compiler."""
    validations_per_epoch: Whole = Field(ge=1)
    """Validations on all validation rows, spread over the epoch."""
    early_stopping: bool
    """Stop once overfitting is confirmed."""
    overfit_patience: Whole = Field(ge=1)
    """Validations above the minimum before overfitting can be confirmed."""
    overfit_p_value: Number = Field(gt=0, lt=1)
    """Largest p value of the paired test that confirms it."""
    sample_prompts: Whole = Field(ge=0)
    """Validation prompts that the model answers at every validation."""
    sample_tokens: Whole = Field(ge=1)
    """Longest such answer in tokens."""
    save_every: Whole = Field(ge=1)
    """Optimizer steps between two saves of the training state."""
    launch: str | None
    """Arguments of torchrun, to train in several processes; null: in one."""
    sharding: Literal["none", "fsdp"]
    """fsdp: each process holds a part of the weights."""
    seed: Whole = Field(ge=0)
    """Of the order of rows, dropout and noise."""

    @field_validator("learning_rate")
    @classmethod
    def _is_no_slip(cls, rate: float, info: ValidationInfo) -> float:
        optimizer = info.data.get("optimizer")
        if rate >= 1 and optimizer not in _ANY_RATE:  # a lost minus, as in 2e4
            raise ValueError(f"input should be less than 1 with {optimizer}")
        return rate

    @field_validator("compile", mode="before")
    @classmethod
    def _as_text(cls, value: object) -> object:
        return str(value).lower() if isinstance(value, bool) else value

    @field_validator("lora_targets", mode="before")
    @classmethod
    def _are_names(cls, value: object) -> object:
        if isinstance(value, str) or (isinstance(value, list) and all(isinstance(name, str) for name in value)):
            return value
        raise ValueError("should be all-linear, or names of layers")

    @field_validator("optimizer_options")
    @classmethod
    def _with_numbers(cls, options: dict[str, Any]) -> dict[str, Any]:
        return {name: _number_if_it_spells_one(value) for name, value in options.items()}


def _number_if_it_spells_one(value: Any) -> Any:
    """As `Number`: YAML 1.1 takes 1e-8 for text."""
    if isinstance(value, list):
        return [_number_if_it_spells_one(item) for item in value]
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value
