"""Checkpoint -> the fine-tuned model's and the base model's answers to every test instruction.

Both models see the same prompts, tokenized as in training. Greedy by default; an answer ends at end-of-text or after
max_new_tokens, and finish_reason says which. Every answer is kept as it comes (.calls.db): a run that was stopped or
killed goes on where it stood, and no model answers the same prompt twice.
"""

from pathlib import Path
from typing import Annotated, ClassVar, Literal

import typer
from pydantic import Field, model_validator

from stages.model.endpoint import EndpointParams
from stages.pipeline.errors import one_line_errors
from stages.pipeline.params import Number, Params, Whole
from stages.pipeline.stopping import Stop, stoppable

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)

Checkpoint = Annotated[Path, typer.Option(help="Fine-tuned model.")]
BaseModel = Annotated[Path, typer.Option(help="Base model, to compare with.")]
ParamsFile = Annotated[Path, typer.Option(help="Parameters.")]


class GenerateParams(Params):
    """Section `generate` of params.yaml."""

    section: ClassVar[str] = "generate"
    engine: Literal["local", "vllm", "openai"]
    """Who writes the answers."""
    endpoint: EndpointParams | None
    """Of engine openai: it answers in place of the fine-tuned model."""
    max_new_tokens: Whole = Field(ge=1)
    """Longest answer in tokens."""
    batch_size: Whole = Field(ge=1)
    """Answers written at once."""
    temperature: Number = Field(ge=0)
    """0: greedy; above: sampling."""
    top_k: Whole = Field(ge=0)
    """Sampling takes so many likeliest tokens; 0: all."""
    top_p: Number = Field(gt=0, le=1)
    """Sampling takes the likeliest tokens up to this probability mass."""
    repetition_penalty: Number = Field(gt=0)
    """Above 1 tokens that have come become less likely."""
    num_samples: Whole = Field(ge=1)
    """Answers to each prompt; the first is judged."""
    precision: Literal["auto", "bf16", "fp32"]
    """Of matrix products; auto: bf16 where the hardware has it."""
    seed: Whole = Field(ge=0)
    """Of sampling."""

    @model_validator(mode="after")
    def _fit(self) -> "GenerateParams":
        if self.engine == "openai" and self.endpoint is None:
            raise ValueError("engine openai wants endpoint: {base_url: ..., model: ..., api_key_env: ...}")
        if self.num_samples > 1 and self.temperature == 0:
            raise ValueError("num_samples above 1 wants a temperature above 0; greedy answers are all the same")
        return self


@app.callback(invoke_without_command=True, help=__doc__)
@one_line_errors()
def main(
    context: typer.Context,
    checkpoint: Checkpoint = Path("data/checkpoint"),
    base_model: BaseModel = Path("data/base_model"),
    test: Annotated[Path, typer.Option(help="Prompts to answer.")] = Path("data/split/test.parquet"),
    responses: Annotated[Path, typer.Option(help="Written: both models' answers.")] = Path("data/responses.parquet"),
    params: ParamsFile = Path("params.yaml"),
) -> None:
    if context.invoked_subcommand is not None:
        return
    settings = GenerateParams.load(params)

    stop = Stop()
    from stages.judging.answering import Answering, in_words, provenance, read_test_prompts, to_responses
    from stages.judging.responses import write_responses
    from stages.model.allocator import keep_freed_memory
    from stages.model.answers import Writer
    from stages.model.calls import CallStore
    from stages.model.checkpoint import make_deterministic, pick_device, pick_dtype
    from stages.model.decoding import Decoding
    from stages.pipeline.progress import say

    prompts, template = read_test_prompts(test, checkpoint)
    keep_freed_memory()
    make_deterministic(settings.seed)
    device = pick_device()
    engine: Literal["local", "vllm"] = "vllm" if settings.engine == "vllm" else "local"
    how = Decoding(**settings.model_dump(include=set(Decoding._fields)))
    writer = Writer(engine, how, settings.batch_size, pick_dtype(settings.precision, device), device)
    asked = Answering(prompts, template, settings.num_samples, settings.seed, CallStore(), stop)
    endpoint = settings.endpoint if settings.engine == "openai" else None
    with stoppable(stop):
        own = (
            asked.by_endpoint(endpoint, writer) if endpoint else asked.by_model("fine-tuned model", checkpoint, writer)
        )
        base = asked.by_model("base model", base_model, writer)
    rows = to_responses(prompts, own, base)
    write_responses(responses, rows, provenance(template, checkpoint, endpoint))
    say(f"generate: {in_words(rows, settings.max_new_tokens)}")


@app.command()
@one_line_errors()
def chat(
    checkpoint: Checkpoint = Path("data/checkpoint"),
    base_model: BaseModel = Path("data/base_model"),
    templates: Annotated[Path, typer.Option(help="Folder of your own templates.")] = Path("data/templates"),
    params: ParamsFile = Path("params.yaml"),
) -> None:
    """Talk with the fine-tuned model in the terminal, in the template it was trained with.

    /base answers your last message with the base model, to compare; /reset begins anew; /quit, or Ctrl-D, ends.
    Knobs are those of section `generate`.
    """
    settings = GenerateParams.load(params)

    from stages.model.chat import Chat, talk
    from stages.model.checkpoint import pick_device, pick_dtype
    from stages.model.decoding import Decoding

    device = pick_device()
    how = Decoding(**settings.model_dump(include=set(Decoding._fields)))
    folders = {"fine-tuned": checkpoint, "base": base_model}
    talk(Chat(folders, templates, how, settings.seed, pick_dtype(settings.precision, device), device))


if __name__ == "__main__":
    app()
