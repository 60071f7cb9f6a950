"""A checkpoint as the subject of benchmarks: its likelihoods and answers, in the template of its training."""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tokenizers import Tokenizer as OwnTokenizer

from stages.benchmarks.benchmark import Message
from stages.benchmarks.chats import plain, render
from stages.instructions.jinja_templates import find_template
from stages.instructions.templates import Segment, Template
from stages.model.allocator import keep_freed_memory
from stages.model.answers import Writer, answer
from stages.model.calls import CallStore
from stages.model.checkpoint import Precision, make_deterministic, pick_device, pick_dtype
from stages.model.decoding import Decoding, Job, Stops
from stages.model.likelihoods import Likelihood, Request, Scorer, limit_of
from stages.model.sampling import seed_of
from stages.model.state import fingerprint
from stages.pipeline.errors import StoppedError, UserError
from stages.pipeline.files import read_json
from stages.pipeline.stopping import Stop
from stages.tokens.tokenizer import Tokenizer

if TYPE_CHECKING:
    from stages.benchmarks.language_model import LanguageModel


class Asked(NamedTuple):
    """A prompt to be continued."""

    prompt: Sequence[int]
    """Token ids."""
    sample: int = 0
    """Which of several answers to it."""


class LocalSubject:
    """The model in a folder; see `Subject`. It is loaded when it is first asked.

    Attributes:
        limit: the most tokens that the model takes.
        beginning: token ids that its tokenizer puts before a plain text by itself.
    """

    def __init__(
        self,
        name: str,
        folder: Path,
        template: Template | None,
        writer: Writer,
        *,
        store: CallStore,
        stop: Stop,
        seed: int,
    ) -> None:
        """How answers are decoded is told when they are asked for, in place of what `writer` has."""
        self.name = name
        self.folder = folder
        self.limit = limit_of(folder)
        self.tokenizer = Tokenizer(folder)
        self.beginning = _beginning(folder)
        self._template, self._writer, self._store, self._stop, self._seed = template, writer, store, stop, seed
        self._scorer: Scorer | None = None

    @property
    def template(self) -> str:
        """Name of the template that chats pass through; none: they do not."""
        return self._template.name if self._template else "none"

    @cached_property
    def lm(self) -> "LanguageModel":
        """The same for lm-eval."""
        from stages.benchmarks.language_model import LanguageModel

        return LanguageModel(self)

    def close(self) -> None:
        """Let go of the model; it is loaded again when it is needed."""
        self._scorer = None

    def render(self, chat: Sequence[Message]) -> list[Segment] | str:
        """A chat up to where its answer goes on: by the template, or as a plain text."""
        return render(self._template, chat) if self._template else plain(chat)

    def encode(self, prompt: Sequence[Segment] | str) -> list[int]:
        """Token ids of what `render` gives, or of a plain text."""
        if isinstance(prompt, str):
            return [*self.beginning, *self.tokenizer.encode(prompt)]
        return self.tokenizer.encode_segments(prompt)

    def answer(
        self,
        chats: Sequence[Sequence[Message]],
        *,
        max_new_tokens: int,
        temperature: float = 0.0,
        top_p: float = 1.0,
        stops: Sequence[str] = (),
        num_samples: int = 1,
    ) -> list[list[str]]:
        """All samples of an answer to each chat, without white space at the ends."""
        how = Decoding(max_new_tokens, temperature, top_p=top_p)
        prompts = [self.encode(self.render(chat)) for chat in chats]
        answers = self._several(prompts, how, self.stops_of_chats(stops), num_samples)
        return [[text.strip() for text in texts] for texts in answers]

    def complete(
        self,
        prompts: Sequence[str],
        *,
        max_new_tokens: int,
        temperature: float = 0.0,
        top_p: float = 1.0,
        stops: Sequence[str] = (),
        num_samples: int = 1,
    ) -> list[list[str]]:
        """All samples of what follows each plain text."""
        how = Decoding(max_new_tokens, temperature, top_p=top_p)
        return self._several([self.encode(prompt) for prompt in prompts], how, stops, num_samples)

    def _several(
        self, prompts: Sequence[Sequence[int]], how: Decoding, stops: Sequence[str], num_samples: int
    ) -> list[list[str]]:
        asked = [Asked(prompt, sample) for prompt in prompts for sample in range(num_samples)]
        texts = self.write(asked, how, stops)
        return [texts[at : at + num_samples] for at in range(0, len(texts), num_samples)]

    def stops_of_chats(self, stops: Sequence[str]) -> list[str]:
        """These, and the text with which the template closes an answer."""
        return [*stops, *([self._template.end] if self._template and self._template.end else [])]

    def write(self, asked: Sequence[Asked], how: Decoding, stops: Sequence[str]) -> list[str]:
        """What the model writes after each prompt, up to the first of `stops`; without control tokens.

        A prompt that leaves no room for the longest answer is cut at its beginning.

        Raises:
            StoppedError: told to stop; what was written is kept.
        """
        self.close()  # the writer loads the model itself, and two may not fit
        how = how._replace(max_new_tokens=min(how.max_new_tokens, self.limit // 2))
        room = self.limit - how.max_new_tokens
        prompts = [list(one.prompt)[-room:] or [self.first_token] for one in asked]
        seeds = [
            seed_of(self._seed, prompt, one.sample) if how.temperature else 0
            for prompt, one in zip(prompts, asked, strict=True)
        ]
        ending = Stops(tuple(sorted({text for text in stops if text})), self.tokenizer.continuation)
        completions = answer(
            f"{self.name} model",
            self.folder,
            [Job(prompt, seed) for prompt, seed in zip(prompts, seeds, strict=True)],
            self._writer._replace(how=how),
            self.tokenizer.end_of_text,
            self._store,
            self._stop,
            stops=ending,
            where="benchmark",
        )
        texts = [ending.cut(self.tokenizer.continuation(completion.token_ids)) for completion in completions]
        return [self._without_control_tokens(text) for text in texts]

    def score(self, requests: Sequence[Request]) -> list[Likelihood]:
        """How likely each continuation is.

        Raises:
            StoppedError: told to stop.
        """
        self._scorer = self._scorer or Scorer(self.folder, self._writer.dtype, self._writer.device)
        return self._scorer.score(requests, f"likelihoods by the {self.name} model", self._look_up)

    def _look_up(self) -> None:
        if self._stop.reason:
            raise StoppedError(
                f"benchmark: stopped ({self._stop.reason}); tasks that were measured are kept; run it again to go on"
            )

    @cached_property
    def first_token(self) -> int:
        """What a text without a beginning is conditioned on: the tokenizer's token for it, else end-of-text."""
        path = self.folder / "tokenizer_config.json"
        token: Any = (read_json(path) if path.exists() else {}).get("bos_token")
        token = token.get("content") if isinstance(token, dict) else token
        return int(self.tokenizer.control_tokens.get(str(token), self.tokenizer.end_of_text))

    def _without_control_tokens(self, text: str) -> str:
        for token in self.tokenizer.control_tokens:
            text = text.replace(token, "")
        return text


def _beginning(folder: Path) -> list[int]:
    """What tokenizer.json puts before a text (as Llama 3 and Gemma have it); what it puts behind one is left out."""
    own = OwnTokenizer.from_file(str(folder / "tokenizer.json"))
    own.no_truncation()
    own.no_padding()
    bare, whole = own.encode("a", add_special_tokens=False).ids, own.encode("a").ids
    starts = [at for at in range(len(whole)) if whole[at : at + len(bare)] == bare]
    return whole[: starts[0]] if starts else []


def both(
    checkpoint: Path,
    base_model: Path,
    templates: Path,
    stop: Stop,
    *,
    template: bool,
    batch_size: int,
    precision: Precision,
    seed: int,
) -> tuple[list[LocalSubject], Mapping[str, str]]:
    """The fine-tuned and the base model, and the hash of all that their answers depend on, by name.

    Raises:
        UserError: a model is not there, or the template of the training has changed since.
    """
    keep_freed_memory()
    make_deterministic(seed)
    device = pick_device()
    writer = Writer("local", Decoding(1), batch_size, pick_dtype(precision, device), device)
    trained_with = _template_of(checkpoint, base_model, templates) if template else None
    store = CallStore()
    make: Callable[[str, Path], LocalSubject] = lambda name, folder: LocalSubject(  # noqa: E731
        name, folder, trained_with, writer, store=store, stop=stop, seed=seed
    )
    subjects = [make("fine-tuned", checkpoint), make("base", base_model)]
    about: dict[str, Any] = {"dtype": str(writer.dtype), "device": device.type}
    about |= {"template": trained_with.hash if trained_with else ""}
    marks = {
        subject.name: fingerprint(about, {path.name: path for path in _files(subject.folder)}) for subject in subjects
    }
    return subjects, marks


def _files(folder: Path) -> list[Path]:
    kinds = (".safetensors", "config.json", "tokenizer.json")
    return [path for path in sorted(folder.iterdir()) if path.name.endswith(kinds)]


def _template_of(checkpoint: Path, base_model: Path, templates: Path) -> Template:
    trained_with = read_json(checkpoint / "onset.json")["template"]
    template = find_template(trained_with["name"], base_model, templates)
    if template.hash != trained_with["hash"]:
        raise UserError(f"{checkpoint}: trained with another text of template {template.name}; run `dvc repro`")
    return template
