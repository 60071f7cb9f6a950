"""The review page, read as a browser would read it."""

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from stages.judging.responses import Response
from stages.judging.review import PAGE, write_review
from stages.judging.summary import Scored
from tests.judging.making import make_response

HOSTILE = (
    "</script><script>alert(1)</script>",
    "<!--<script>",
    '"}]}</SCRIPT ><img src=x onerror=alert(1)>',
    "__DATA__ \\u003c & &lt; ' \" \\ \u2028 \u00e9 \U0001f600",
)


class Scripts(HTMLParser):
    """Collects the text of every script element, and every tag."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.scripts: list[tuple[str | None, str]] = []
        self._inside = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag == "script":
            self.scripts.append((dict(attrs).get("id"), ""))
            self._inside = True

    def handle_endtag(self, tag: str) -> None:
        if tag == "script":
            self._inside = False

    def handle_data(self, data: str) -> None:
        if self._inside:
            name, text = self.scripts[-1]
            self.scripts[-1] = (name, text + data)


def parse(page: str) -> Scripts:
    parser = Scripts()
    parser.feed(page)
    parser.close()
    return parser


def data_of(page: str) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(dict(parse(page).scripts)["data"])
    return data


def score_of(row: Response, score: float | None = 50.0) -> Scored:
    return Scored(row.id, row.category, score, 40.0, None if score is None else 1.0, 0.0, 0.5, 0.5, 0.0, 0.25, 0.25)


def write(folder: Path, rows: list[Response], summary: dict[str, Any]) -> str:
    path = folder / "review.html"
    write_review(path, rows, [score_of(row) for row in rows], summary)
    return path.read_text(encoding="utf-8")


def test_every_row_is_there_with_its_scores(tmp_path: Path) -> None:
    rows = [make_response(id=str(at), response=f"Answer {at}.", category=None if at else "x") for at in range(25)]
    data = data_of(write(tmp_path, rows, {"score": 50.0, "judge_reliable": 1}))
    assert data["summary"] == {"score": 50.0, "judge_reliable": 1}
    assert data["rows"] == [row._asdict() | score_of(row)._asdict() for row in rows]


def test_an_invalid_verdict_is_null(tmp_path: Path) -> None:
    row = make_response()
    write_review(tmp_path / "review.html", [row], [score_of(row, None)], {})
    (found,) = data_of((tmp_path / "review.html").read_text(encoding="utf-8"))["rows"]
    assert found["score"] is None
    assert found["win"] is None


@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.parametrize("field", ["response", "base_response", "reference", "instruction", "input", "category"])
def test_no_text_can_end_the_data(tmp_path: Path, text: str, field: str) -> None:
    page = write(tmp_path, [make_response()._replace(**{field: text})], {"note": text})
    data = data_of(page)
    assert data["rows"][0][field] == text
    assert data["summary"] == {"note": text}
    # Whatever was in the data, the page has the elements of the page and no other.
    template = parse(PAGE.read_text(encoding="utf-8"))
    assert parse(page).tags == template.tags
    assert [name for name, _ in parse(page).scripts] == [name for name, _ in template.scripts]
    assert parse(page).scripts[1:] == template.scripts[1:]


def test_the_page_loads_nothing_from_elsewhere() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert page.count("__DATA__") == 1
    assert not {"link", "img", "iframe"} & set(parse(page).tags)
    assert "http" not in page
    assert "innerHTML" not in page  # text of a model would become markup
