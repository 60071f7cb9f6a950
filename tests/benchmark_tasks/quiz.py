"""A benchmark for tests: questions with answers, one subtask a file."""

import json
from collections.abc import Sequence
from pathlib import Path

from stages.benchmarks.benchmark import Benchmark, Figure, Found, Measurement, Need, Row, Settings, Source, Subject
from stages.benchmarks.estimates import estimate
from stages.pipeline.errors import UserError


class Quiz(Benchmark):
    """Right is who gives the answer word for word."""

    name = "quiz"
    title = "Quiz"
    about = "questions and answers"
    layout = "<subtask>.json: {question: answer}"
    source = Source(licence="none", where="https://quiz.invalid", hub="acme/tiny", patterns=("*.json",))
    needs: frozenset[Need] = frozenset()
    together = False
    published = {"easy": 4, "hard": 2}  # noqa: RUF012  (a protocol has no class variables)

    def find(self, folder: Path) -> Found:
        """Counts of the files."""
        return Found({name: len(rows) for name, rows in _read(folder).items()}, self.published)

    def measure(
        self, subjects: Sequence[Subject], folder: Path, wanted: Sequence[str], settings: Settings, into: Path
    ) -> Measurement:
        """Exact match of one answer."""
        found = self.find(folder)
        names = list(wanted) or list(found.rows)
        rows = [row for name in names for row in _ask(subjects[0], name, _read(folder)[name], settings.limit)]
        figures = []
        for part in [[name] for name in names] + [names]:
            scores = [row.score for row in rows if row.task.removeprefix("quiz/") in part]
            own = estimate(scores, resamples=settings.resamples, seed=settings.seed)
            whole = part == names and len(part) > 1
            figures.append(
                Figure(
                    subjects[0].name,
                    "quiz" if whole else f"quiz/{part[0]}",
                    "exact_match",
                    own.value,
                    *own.limits(settings.confidence),
                    n=own.n,
                    run=len(part),
                    out_of=len(self.published) if whole else 1,
                    shots=0,
                    protocol="one answer, word for word",
                    template=subjects[0].template,
                    library="onset",
                    scope=found.scope(list(self.published) if whole else part, settings.limit),
                )
            )
        return Measurement(figures, rows)


def _read(folder: Path) -> dict[str, dict[str, str]]:
    found = {}
    for path in sorted(folder.glob("*.json")):
        try:
            found[path.stem] = json.loads(path.read_text())
        except ValueError:
            raise UserError(f"{path}: not JSON; fetch it again") from None
    return found


def _ask(subject: Subject, name: str, questions: dict[str, str], limit: int | None) -> list[Row]:
    asked = list(questions)[:limit]
    chats = [[{"role": "user", "content": question}] for question in asked]
    answers = subject.answer(chats, max_new_tokens=5)
    return [
        Row(subject.name, f"quiz/{name}", question, question, answer, target, float(answer == target))
        for question, target, [answer] in zip(asked, map(questions.__getitem__, asked), answers, strict=True)
    ]
