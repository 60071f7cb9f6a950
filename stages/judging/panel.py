"""Who judges, and against whom: from the parameters to judges and an opponent."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from stages.judging.responses import Response, read_responses
from stages.judging.scoring import BASE, Opponent, base_of, opponent_of
from stages.judging.verdicts import Judge
from stages.model.calls import CallStore
from stages.model.endpoint import EndpointParams
from stages.pipeline.errors import UserError


def make_judges(
    names: Sequence[str],
    endpoints: Mapping[str, EndpointParams],
    base_model: Path,
    *,
    scale: Literal["rubric", "percent"],
    rubric: str,
    seed: int,
) -> list[Judge]:
    """The judges by their names in params.yaml; those behind endpoints share one store of calls."""
    store = CallStore()

    def behind_endpoint(name: str) -> Judge:
        """Imports the client, which the embedded judge does not need."""
        from stages.judging.endpoint_judge import EndpointJudge

        return EndpointJudge(name, endpoints[name], store, scale=scale, rubric=rubric)

    return [behind_endpoint(name) if name in endpoints else _embedded(base_model, seed) for name in names]


def _embedded(base_model: Path, seed: int) -> Judge:
    """Imports torch, which endpoints do not need."""
    from stages.judging.embedded import EmbeddedJudge
    from stages.model.allocator import keep_freed_memory
    from stages.model.checkpoint import make_deterministic

    keep_freed_memory()
    make_deterministic(seed)
    return EmbeddedJudge(base_model)


def find_opponent(name: str, rows: Sequence[Response], folder: Path) -> Opponent | None:
    """Whom `judge.pairwise` names: `base`, `none`, or a file of responses in `folder`.

    Raises:
        UserError: there is no such file, or it has answered none of these rows.
    """
    if name == "none":
        return None
    if name == BASE:
        return base_of(rows)
    path = folder / f"{name}.parquet"
    known = [BASE, "none", *sorted(file.stem for file in folder.glob("*.parquet"))]
    if name not in known:
        raise UserError(
            f"judge.pairwise: no responses called '{name}'; known: {', '.join(known)}; put another experiment's "
            f"data/responses.parquet into {folder} as {name}.parquet"
        )
    return opponent_of(name, rows, read_responses(path)[0])
