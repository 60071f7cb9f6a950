"""Checkpoint -> the fine-tuned model's and the base model's answers to every test instruction.

Both models see the same prompts, tokenized as in training. Greedy by default; an answer ends at end-of-text or after
max_new_tokens, and finish_reason says which.
"""

from pathlib import Path
from typing import Annotated, ClassVar, Literal

import typer
from pydantic import Field

from stages.pipeline.errors import UserError, one_line_errors
from stages.pipeline.params import Number, Params, Whole

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


class GenerateParams(Params):
    """Section `generate` of params.yaml."""

    section: ClassVar[str] = "generate"
    max_new_tokens: Whole = Field(ge=1)
    """Longest answer in tokens."""
    batch_size: Whole = Field(ge=1)
    """Prompts decoded together."""
    temperature: Number = Field(ge=0)
    """0: greedy; above: sampling."""
    top_p: Number = Field(gt=0, le=1)
    """Sampling takes the likeliest tokens up to this probability mass."""
    precision: Literal["auto", "bf16", "fp32"]
    """Of matrix products; auto: bf16 where the hardware has it."""
    seed: Whole = Field(ge=0)
    """Of sampling."""


@app.command(help=__doc__)
@one_line_errors()
def main(
    checkpoint: Annotated[Path, typer.Option(help="Fine-tuned model.")] = Path("data/checkpoint"),
    base_model: Annotated[Path, typer.Option(help="Base model, to compare with.")] = Path("data/base_model"),
    test: Annotated[Path, typer.Option(help="Prompts to answer.")] = Path("data/split/test.parquet"),
    responses: Annotated[Path, typer.Option(help="Written: both models' answers.")] = Path("data/responses.parquet"),
    params: Annotated[Path, typer.Option(help="Parameters.")] = Path("params.yaml"),
) -> None:
    settings = GenerateParams.load(params)

    from stages.instructions.prompts import read_prompts, read_template_mark
    from stages.judging.responses import Response, write_responses
    from stages.model.answers import answer
    from stages.model.checkpoint import load_model, make_deterministic, pick_device, pick_dtype
    from stages.pipeline.files import read_json, sha256_of
    from stages.pipeline.progress import say
    from stages.tokens.tokenizer import Tokenizer

    prompts = read_prompts(test)
    if not prompts:
        raise UserError(f"{test}: holds no prompt; raise split.test_fraction")
    template = read_template_mark(test)
    trained_with = read_json(checkpoint / "onset.json")["template"]
    if trained_with != template._asdict():
        ours, theirs = f"{template.name} ({template.hash})", f"{trained_with['name']} ({trained_with['hash']})"
        raise UserError(f"{test}: template {ours} is not the checkpoint's {theirs}; run `dvc repro`")
    make_deterministic(settings.seed)
    device = pick_device()
    dtype = pick_dtype(settings.precision, device)
    tokenizer = Tokenizer(checkpoint)
    knobs = settings.model_dump(exclude={"precision"})
    answers = {
        folder: answer(name, load_model(folder, dtype, device), tokenizer, prompts, template.end, **knobs)
        for name, folder in (("fine-tuned model", checkpoint), ("base model", base_model))
    }
    rows = [
        Response(p.id, p.category, p.question, p.input, p.response, *tuned, *base)
        for p, tuned, base in zip(prompts, answers[checkpoint], answers[base_model], strict=True)
    ]
    about = {"template": template._asdict(), "checkpoint_sha256": sha256_of(checkpoint / "model.safetensors")}
    write_responses(responses, rows, about)
    cut = sum(row.finish_reason == "length" for row in rows)
    base_cut = sum(row.base_finish_reason == "length" for row in rows)
    say(
        f"generate: {len(rows)} test instructions answered; "
        f"cut at {settings.max_new_tokens} tokens: {cut} of the fine-tuned model's, {base_cut} of the base model's"
    )


if __name__ == "__main__":
    app()
