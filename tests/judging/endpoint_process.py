"""Judge rows through an endpoint in a process of its own, to be killed: `URL DATABASE ROWS`."""

import sys
from pathlib import Path
from typing import Any

from stages.judging.endpoint_judge import EndpointJudge
from stages.judging.responses import Response
from stages.model.calls import CallStore
from stages.model.endpoint import EndpointParams, Pace
from stages.pipeline.errors import one_line_errors
from tests.judging.making import make_response

RUBRIC = "1: wrong in all\n5: right in all"
PACE = Pace(concurrency=4, requests_per_minute=0, timeout=5, retries=2, first_wait=0.01)


def rows_and_answers(count: int) -> tuple[list[Response], list[str]]:
    rows = [make_response(f"reference {n}", id=str(n), instruction=f"question {n}?") for n in range(count)]
    return rows, [f"answer {n}" for n in range(count)]


def make_judge(
    url: str,
    path: Path,
    scale: str = "rubric",
    pace: Pace = PACE,
    env: str | None = None,
    model: str = "tiny",
    **options: Any,
) -> EndpointJudge:
    endpoint = EndpointParams(base_url=url, model=model, api_key_env=env, options=options)
    assert scale in ("rubric", "percent")
    return EndpointJudge(
        "gpt", endpoint, CallStore(path), scale="rubric" if scale == "rubric" else "percent", rubric=RUBRIC, pace=pace
    )


if __name__ == "__main__":
    url, path, count = sys.argv[1:]
    with one_line_errors():
        verdicts = make_judge(url, Path(path)).grade(*rows_and_answers(int(count)))
        print([verdict.score for verdict in verdicts])
