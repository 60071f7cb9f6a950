"""data/review.html: one self-contained page to read every answer, worst first."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stages.judging.responses import Response
from stages.judging.summary import Scored
from stages.pipeline.files import write_text

PAGE = Path(__file__).with_name("review.html")


def write_review(
    path: Path, responses: Sequence[Response], scores: Sequence[Scored], summary: Mapping[str, Any]
) -> None:
    """Write the page; rows are sorted in the browser."""
    rows = [response._asdict() | score._asdict() for response, score in zip(responses, scores, strict=True)]
    page = PAGE.read_text(encoding="utf-8")
    # In a script element only "<" could end the data, whatever a model has written.
    data = json.dumps({"rows": rows, "summary": summary}, ensure_ascii=False).replace("<", "\\u003c")
    write_text(path, page.replace("__DATA__", data))
