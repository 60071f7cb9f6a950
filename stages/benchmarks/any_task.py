"""`lm_eval:<task>`: any task, group or tag that lm-eval knows, as it has it, on rows that it fetches itself.

Tasks of one's own are YAML files in data/benchmarks/lm_eval:<task>/.
"""

import difflib
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from stages.benchmarks.benchmark import Benchmark, Figure, Found, Measurement, Need, Row, Settings, Source, Subject
from stages.benchmarks.estimates import Estimate, weighted
from stages.benchmarks.figures import About, figures
from stages.pipeline.errors import UserError


class AnyTask(Benchmark):
    """One name of lm-eval's."""

    about = "a task of lm-eval as it has it, on rows that it fetches from the Hugging Face hub"
    layout = "nothing, or YAML files of a task of your own"
    source = Source(licence="the data set's own", where="https://github.com/EleutherAI/lm-evaluation-harness")
    needs: frozenset[Need] = frozenset()
    together = False

    def __init__(self, task: str) -> None:
        self.task = task
        self.name = f"lm_eval:{task}"
        self.title = f"{task} of lm-eval"

    def find(self, folder: Path) -> Found:
        """The task, its rows not yet known.

        Raises:
            UserError: lm-eval does not know it; the nearest names are told.
        """
        _manager(self.task, folder)
        return Found({self.task: 0}, {self.task: 0})

    def check(self, folder: Path, wanted: Sequence[str], settings: Settings) -> None:
        """It has no parts."""
        self.find(folder)

    def measure(
        self, subjects: Sequence[Subject], folder: Path, wanted: Sequence[str], settings: Settings, into: Path
    ) -> Measurement:
        """The task, or every task of a group, and what lm-eval makes of the group."""
        from stages.benchmarks import harness

        made: list[Figure] = []
        rows: list[Row] = []
        for subject in subjects:
            loaded = self._load(folder, settings)
            tasks = loaded["tasks"]
            alone = list(tasks) == [self.task]
            named = {self.name if alone else f"{self.name}/{name}": task for name, task in tasks.items()}
            measured = harness.measure(named, subject, settings)
            for name, one in measured.items():
                made += figures(
                    _about(name, [named[name]], settings, harness.LIBRARY), one.estimates, subject, settings
                )
                rows += one.rows
            if not alone:
                about = _about(self.name, list(tasks.values()), settings, harness.LIBRARY)
                values = self._of_group(loaded, [one.estimates for one in measured.values()])
                made += figures(about, values, subject, settings)
        return Measurement(made, rows)

    def _load(self, folder: Path, settings: Settings) -> Mapping[str, Any]:
        """Task objects, made anew for each subject since they keep what was asked."""
        manager = _manager(self.task, folder)
        try:
            loaded: Mapping[str, Any] = manager.load([self.task])
        except ImportError as error:
            raise UserError(f"{self.name}: needs a package that is not there ({error}); install it") from None
        except Exception as error:  # of datasets, of the hub library, or of the task's own code
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise UserError(
                f"{self.name}: its data cannot be had: {reason}; with a network unset HF_HUB_OFFLINE, without one "
                "fetch the data set into the hub library's cache first"
            ) from None
        for name, task in loaded["tasks"].items():
            if getattr(task, "UNSAFE_CODE", False):
                raise UserError(f"{self.name}: {name} runs code that a model wrote, in no sandbox; take humaneval")
            if getattr(task, "MULTIMODAL", False):
                raise UserError(
                    f"{self.name}: {name} shows pictures or sound, which this model cannot take; leave it out"
                )
            if self.name in settings.shots:
                task.set_config(key="num_fewshot", value=settings.shots[self.name])
            task.set_fewshot_seed(seed=settings.seed)
        return loaded

    def _of_group(self, loaded: Mapping[str, Any], tasks: Sequence[Mapping[str, Estimate]]) -> dict[str, Estimate]:
        """The group's own figures, as its `aggregate_metric_list` has them; a tag has none."""
        group = loaded.get("groups", {}).get(self.task)
        found = {}
        for aggregate in (group.aggregate_metric_list or []) if group else []:
            own = [one[aggregate.metric] for one in tasks if aggregate.metric in one]
            if len(own) == len(tasks) and aggregate.aggregation == "mean":
                weights = [one.n for one in own] if aggregate.weight_by_size else None
                found[aggregate.metric] = weighted(own, weights)
        return found


def _about(name: str, tasks: Sequence[Any], settings: Settings, library: str) -> About:
    shots = {int(task.config.num_fewshot or 0) for task in tasks}
    cut = settings.limit is not None and any(settings.limit < len(task.eval_docs) for task in tasks)
    return About(
        task=name,
        shots=shots.pop() if len(shots) == 1 else None,
        protocol=f"as lm-eval has it ({' and '.join(sorted({task.OUTPUT_TYPE for task in tasks}))})",
        library=library,
        scope="sample" if cut else "full",
        run=len(tasks),
        out_of=len(tasks),
    )


def _manager(task: str, folder: Path) -> Any:
    """lm-eval's index of tasks: of the folder if the task stands there, else of all that lm-eval ships.

    Raises:
        UserError: neither knows the task.
    """
    from lm_eval.tasks import TaskManager

    if folder.is_dir():
        own = TaskManager(include_path=str(folder), include_defaults=False)
        if task in own.all_tasks:
            return own
    shipped = _shipped()
    if task not in shipped.all_tasks:
        near = difflib.get_close_matches(task, shipped.all_tasks, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else "see `lm-eval ls tasks` for all names"
        raise UserError(f"lm_eval:{task}: lm-eval knows no such task; {hint}")
    return shipped


@cache
def _shipped() -> Any:
    """All 14,000 names, which take seconds to read."""
    from lm_eval.tasks import TaskManager

    return TaskManager()


def any_task(task: str) -> AnyTask:
    """The benchmark `lm_eval:<task>`."""
    return AnyTask(task)
