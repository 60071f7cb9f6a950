"""From estimates to figures: what all figures of one name have in common is said once."""

from collections.abc import Mapping
from typing import NamedTuple

from stages.benchmarks.benchmark import Figure, Scope, Settings, Subject
from stages.benchmarks.estimates import Estimate


class About(NamedTuple):
    """What stands beside every metric of one task; see `Figure`."""

    task: str
    shots: int | None
    protocol: str
    library: str
    scope: Scope
    run: int = 1
    out_of: int = 1


def figures(about: About, estimates: Mapping[str, Estimate], subject: Subject, settings: Settings) -> list[Figure]:
    """One figure a metric, with its interval."""
    made = []
    for metric, one in estimates.items():
        low, high = one.limits(settings.confidence)
        made.append(
            Figure(
                model=subject.name,
                template=subject.template,
                metric=metric,
                value=one.value,
                low=low,
                high=high,
                n=one.n,
                **about._asdict(),
            )
        )
    return made
