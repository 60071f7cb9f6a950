"""data/review.html: one self-contained page to read every answer, score it, and vote blind between two models."""

import base64
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stages.judging.responses import Response
from stages.judging.summary import Scored
from stages.pipeline.files import write_text

PAGE = Path(__file__).with_name("review.html")


def write_review(
    path: Path,
    responses: Sequence[Response],
    scores: Sequence[Scored],
    summary: Mapping[str, Any],
    *,
    judges: Mapping[str, Sequence[float | None]],
    responses_sha256: str,
) -> None:
    """Write the page; rows are sorted in the browser.

    Args:
        path: The page.
        responses: Both models' answers.
        scores: The headline judge's scores and the metrics, beside `responses`.
        summary: The figures of metrics/judge.json.
        judges: Each judge's scores of the fine-tuned answers, beside `responses`; the headline judge comes first.
        responses_sha256: Of data/responses.parquet, so that a review can be led back to what was read.

    Raises:
        ValueError: columns of different length, or a number that JSON does not know.
    """
    rows = [response._asdict() | score._asdict() for response, score in zip(responses, scores, strict=True)]
    for name, given in judges.items():
        if len(given) != len(rows):
            raise ValueError(f"judge {name}: {len(given)} scores for {len(rows)} rows")
    data = {
        "rows": rows,
        "summary": summary,
        # A list: a browser would put a judge called "4" before all others.
        "judges": [{"name": name, "scores": list(given)} for name, given in judges.items()],
        "responses": responses_sha256,
    }
    # In a script element only "<" could end the data, whatever a model has written.
    text = json.dumps(data, ensure_ascii=False, allow_nan=False).replace("<", "\\u003c")
    page = PAGE.read_text(encoding="utf-8")
    # The data last: it may hold any text, also the other placeholder.
    write_text(path, page.replace("__POLICY__", content_policy(page)).replace("__DATA__", text))


def content_policy(page: str) -> str:
    """The Content-Security-Policy (CSP level 3) under which the page's own script and style run and nothing else does.

    No request can leave the page, and no text can become markup or script (Trusted Types).
    """
    allowed = {kind: _source_hash(page, kind) for kind in ("script", "style")}
    return (
        f"default-src 'none'; script-src '{allowed['script']}'; style-src '{allowed['style']}'; "
        "base-uri 'none'; form-action 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
    )


def _source_hash(page: str, kind: str) -> str:
    (source,) = re.findall(rf"<{kind}>(.*?)</{kind}>", page, re.DOTALL)
    return "sha256-" + base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()
