"""The review page, read as a browser would read it."""

import base64
import hashlib
import json
import re
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
    figures: dict[str, Any] = dict.fromkeys(Scored._fields)
    figures |= {"id": row.id, "category": row.category, "score": score, "base_score": 40.0, "rouge_l": 0.5}
    return Scored(**figures | {"base_rouge_l": 0.25, "win": None if score is None else 1.0})


def write(folder: Path, rows: list[Response], summary: dict[str, Any]) -> str:
    path = folder / "review.html"
    scores = [score_of(row) for row in rows]
    judges: dict[str, list[float | None]] = {"9": [row.score for row in scores], "4": [None for _ in rows]}
    write_review(path, rows, scores, summary, judges=judges, responses_sha256="ab" * 32)
    return path.read_text(encoding="utf-8")


def test_every_row_is_there_with_its_scores(tmp_path: Path) -> None:
    rows = [make_response(id=str(at), response=f"Answer {at}.", category=None if at else "x") for at in range(25)]
    data = data_of(write(tmp_path, rows, {"score": 50.0, "judge_reliable": 1}))
    assert data["summary"] == {"score": 50.0, "judge_reliable": 1}
    wanted = [row._asdict() | score_of(row)._asdict() for row in rows]
    assert data["rows"] == json.loads(json.dumps(wanted))  # a tuple comes back as a list
    assert data["responses"] == "ab" * 32


def test_judges_keep_their_order(tmp_path: Path) -> None:
    data = data_of(write(tmp_path, [make_response()], {}))
    assert data["judges"] == [{"name": "9", "scores": [50.0]}, {"name": "4", "scores": [None]}]


def test_a_judge_with_too_few_scores_is_refused(tmp_path: Path) -> None:
    row = make_response()
    with pytest.raises(ValueError, match="judge gpt: 0 scores for 1 rows"):
        write_review(tmp_path / "x", [row], [score_of(row)], {}, judges={"gpt": []}, responses_sha256="")
    assert not (tmp_path / "x").exists()


def test_the_same_rows_give_the_same_bytes(tmp_path: Path) -> None:
    assert write(tmp_path, [make_response()], {"score": 1.0}) == write(tmp_path, [make_response()], {"score": 1.0})


def test_an_invalid_verdict_is_null(tmp_path: Path) -> None:
    row = make_response()
    write_review(tmp_path / "review.html", [row], [score_of(row, None)], {}, judges={"it": [None]}, responses_sha256="")
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
    assert not {"link", "img", "iframe", "object", "embed", "base"} & set(parse(page).tags)
    assert "://" not in page
    for way in ("innerHTML", "outerHTML", "insertAdjacent", "document.write", "eval(", "Function("):
        assert way not in page  # text of a model would become markup or script


def test_the_policy_names_the_script_and_the_style_that_are_in_the_page(tmp_path: Path) -> None:
    page = write(tmp_path, [make_response()], {})
    assert "__POLICY__" not in page
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', page)
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe" not in policy
    for kind, text in (("script", parse(page).scripts[1][1]), ("style", page.split("<style>")[1].split("</style>")[0])):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy
    # An attribute would need a looser policy.
    markup = PAGE.read_text(encoding="utf-8").split("<body>")[1].split("<script")[0]
    assert not re.search(r"<[^>]*\s(style|on[a-z]+)=", markup)
