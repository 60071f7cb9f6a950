"""From test prompts to the record that judges read: what both models, or an endpoint and the base model, answer."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from stages.instructions.prompts import Prompt, TemplateMark, read_prompts, read_template_mark
from stages.judging.responses import Response
from stages.model.answers import Writer, answer
from stages.model.calls import CallStore
from stages.model.decoding import Completion, Job
from stages.model.endpoint import EndpointParams, Reply, Request
from stages.model.sampling import seed_of
from stages.pipeline.errors import UserError
from stages.pipeline.files import read_json, sha256_of
from stages.pipeline.progress import say
from stages.pipeline.stopping import Stop
from stages.tokens.tokenizer import Tokenizer


class Answer(NamedTuple):
    """One answer as text."""

    text: str
    finish_reason: str


class Answering(NamedTuple):
    """How a set of prompts is answered, by whomever."""

    prompts: Sequence[Prompt]
    template: TemplateMark
    num_samples: int
    seed: int
    store: CallStore
    stop: Stop

    def by_model(self, name: str, folder: Path, writer: Writer) -> list[list[Answer]]:
        """All samples for each prompt, by the model in `folder`, which sees the prompts as in training."""
        tokenizer = Tokenizer(folder)
        encoded = [encode(prompt, tokenizer) for prompt in self.prompts]
        greedy = writer.how.temperature == 0
        jobs = [
            Job(tokens, 0 if greedy else seed_of(self.seed, tokens, sample))
            for tokens in encoded
            for sample in range(self.num_samples)
        ]
        completions = answer(name, folder, jobs, writer, tokenizer.end_of_text, self.store, self.stop)
        return self._grouped([self._as_text(completion, tokenizer) for completion in completions])

    def by_endpoint(self, endpoint: EndpointParams, writer: Writer) -> list[list[Answer]]:
        """The same by an endpoint, in the chat format of its own."""
        from stages.model.calling import answered  # imports a client, which models do not need

        how = writer.how
        unusual = {"top_k": how.top_k or None, "repetition_penalty": how.repetition_penalty}
        if how.repetition_penalty == 1:
            del unusual["repetition_penalty"]
        options = {"temperature": how.temperature, "top_p": how.top_p, **unusual}
        requests = [
            Request(messages_of(prompt), how.max_new_tokens, options | {"seed": self.seed + sample})
            for prompt in self.prompts
            for sample in range(self.num_samples)
        ]
        answers = answered(
            requests, endpoint, self.store, where="generate.endpoint", label=f"answers of {endpoint.model}"
        )
        say(f"  {endpoint.model}: {answers.line()}")
        return self._grouped(
            [
                Answer(outcome.text.strip(), outcome.finish_reason)
                if isinstance(outcome, Reply)
                else Answer("", "refused")
                for outcome in answers.outcomes
            ]
        )

    def _grouped(self, answers: Sequence[Answer]) -> list[list[Answer]]:
        count = self.num_samples
        return [list(answers[at : at + count]) for at in range(0, len(answers), count)]

    def _as_text(self, completion: Completion, tokenizer: Tokenizer) -> Answer:
        """Without the template's closing text."""
        text = tokenizer.decode(completion.token_ids).strip()
        end = self.template.end
        return Answer(text.removesuffix(end).rstrip() if end else text, completion.finish_reason)


def encode(prompt: Prompt, tokenizer: Tokenizer) -> list[int]:
    """Token ids of everything before the last response."""
    last = max(at for at, segment in enumerate(prompt.segments) if segment.role == "response")
    return tokenizer.encode_segments(prompt.segments[:last])


def messages_of(prompt: Prompt) -> list[dict[str, str]]:
    """A prompt as a chat; earlier turns stand in the message as text."""
    system = [{"role": "system", "content": prompt.system}] if prompt.system else []
    asked = f"{prompt.history}User: {prompt.instruction}" if prompt.history else prompt.instruction
    return [*system, {"role": "user", "content": f"{asked}\n\n{prompt.input}" if prompt.input else asked}]


def read_test_prompts(test: Path, checkpoint: Path) -> tuple[list[Prompt], TemplateMark]:
    """The prompts and their template.

    Raises:
        UserError: there are none, or the checkpoint was trained with another template.
    """
    prompts = read_prompts(test)
    if not prompts:
        raise UserError(f"{test}: holds no prompt; raise split.test_fraction")
    template = read_template_mark(test)
    trained_with = read_json(checkpoint / "onset.json")["template"]
    if trained_with != template._asdict():
        ours, theirs = f"{template.name} ({template.hash})", f"{trained_with['name']} ({trained_with['hash']})"
        raise UserError(f"{test}: template {ours} is not the checkpoint's {theirs}; run `dvc repro`")
    return prompts, template


def to_responses(
    prompts: Sequence[Prompt], own: Sequence[Sequence[Answer]], base: Sequence[Sequence[Answer]]
) -> list[Response]:
    """A row for each prompt; the first sample is the response."""
    return [
        Response(
            *(prompt.id, prompt.category, prompt.question, prompt.input, prompt.response),
            *ours[0],
            *theirs[0],
            *([answer.text for answer in answers] if len(answers) > 1 else [] for answers in (ours, theirs)),
        )
        for prompt, ours, theirs in zip(prompts, own, base, strict=True)
    ]


def provenance(template: TemplateMark, checkpoint: Path, endpoint: EndpointParams | None) -> dict[str, Any]:
    """What travels in the file: where its answers come from."""
    about: dict[str, Any] = {"template": template._asdict()}
    if endpoint is None:
        return about | {"checkpoint_sha256": sha256_of(checkpoint / "model.safetensors")}
    return about | {"endpoint": {"base_url": endpoint.base_url, "model": endpoint.model}}


def in_words(rows: Sequence[Response], max_new_tokens: int) -> str:
    """The end of the stage for a reader."""
    cut = sum(row.finish_reason == "length" for row in rows)
    base_cut = sum(row.base_finish_reason == "length" for row in rows)
    refused = sum(row.finish_reason == "refused" for row in rows)
    return (
        f"{len(rows)} test instructions answered; "
        f"cut at {max_new_tokens} tokens: {cut} of the fine-tuned model's, {base_cut} of the base model's"
        + (f"; {refused} refused by the endpoint, and empty" if refused else "")
    )
