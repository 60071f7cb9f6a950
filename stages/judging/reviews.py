"""What people said on the review page: read with care, and kept."""

import hashlib
import json
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from stages.pipeline.errors import UserError
from stages.pipeline.files import sha256_of, write_json

FORMAT = "onset-review-1"
FOLDER = Path("data/reviews")
VOTES = {"response": 1.0, "tie": 0.5, "base_response": 0.0}
"""A blind vote as a verdict for the fine-tuned answer."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class HumanScore(_Strict):
    """What a person said of the fine-tuned model's answer to one row."""

    score: Annotated[int, Field(ge=1, le=5)] | None
    note: str = ""


class Review(_Strict):
    """The file that data/review.html saves."""

    format: Literal["onset-review-1"]
    responses: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    """SHA-256 of the data/responses.parquet it is of."""
    reviewer: Annotated[str, Field(min_length=1, max_length=100)]
    scores: dict[str, HumanScore]
    votes: dict[str, Literal["response", "base_response", "tie"]]
    """Which answer won side by side, by row id."""

    @property
    def ratings(self) -> dict[str, int]:
        """Scores that were given, 1 to 5, by row id."""
        return {id: given.score for id, given in sorted(self.scores.items()) if given.score is not None}


def read_review(path: Path) -> Review:
    """Read what the page saved.

    Raises:
        UserError: it is not such a file, or says nothing.
    """
    try:
        text = path.read_text(encoding="utf-8")
        value = json.loads(text, object_pairs_hook=_no_repeats)
        json.dumps(value, ensure_ascii=False).encode()  # half of a surrogate pair is JSON, but no text
    except FileNotFoundError:
        raise UserError(f"{path}: not found; save a review on data/review.html first") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not a review: not valid JSON ({str(error)[:200]})") from None
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        raise UserError(f"{path}: not a review: `format` is not {FORMAT}; take the file that data/review.html saved")
    if isinstance(value.get("reviewer"), str):
        value["reviewer"] = " ".join(unicodedata.normalize("NFC", value["reviewer"]).split())
    try:
        review = Review.model_validate(value)
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(map(str, problem["loc"]))
        raise UserError(f"{path}: not a review: {where[:120]}: {problem['msg'][:200]}") from None
    if not review.reviewer.isprintable():
        raise UserError(f"{path}: not a review: reviewer: {review.reviewer!r} holds control characters")
    if not review.ratings and not review.votes:
        raise UserError(f"{path}: holds no score and no vote; there is nothing to import")
    return review


def _no_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) < len(pairs):
        raise ValueError("a name comes twice in one object")
    return dict(pairs)


def check_review(path: Path, review: Review, responses_sha256: str, ids: Sequence[str]) -> None:
    """Is the review of these responses?

    Raises:
        UserError: it is of others, or names rows that they do not have.
    """
    if review.responses != responses_sha256:
        raise UserError(
            f"{path}: is of other responses ({review.responses[:8]}) than data/responses.parquet "
            f"({responses_sha256[:8]}); check out the commit or experiment that was reviewed, run `dvc checkout`"
        )
    unknown = sorted((review.scores.keys() | review.votes.keys()) - set(ids))
    if unknown:
        shown = ", ".join(repr(id[:40]) for id in unknown[:3])
        raise UserError(f"{path}: {len(unknown)} of its rows are not in data/responses.parquet, as {shown}")


def read_reviews(folder: Path, responses_sha256: str | None = None) -> dict[Path, Review]:
    """All reviews in a folder, in the order of their names; where a hash is given, those of these responses."""
    found = {path: read_review(path) for path in sorted(folder.glob("*.json"))}
    return {path: review for path, review in found.items() if responses_sha256 in (None, review.responses)}


def import_reviews(paths: Sequence[Path], responses: Path, ids: Sequence[str], folder: Path) -> list[str]:
    """Check files that the page saved, keep them in `folder`; returns a line on each.

    Raises:
        UserError: one of them cannot be used, or two are by one person; none is kept.
    """
    digest = sha256_of(responses)
    reviews: dict[str, tuple[Path, Review]] = {}
    for path in paths:
        review = read_review(path)
        check_review(path, review, digest, ids)
        if review.reviewer in reviews:
            raise UserError(f"{path}: is by {review.reviewer}, as {reviews[review.reviewer][0]} is; give the later one")
        reviews[review.reviewer] = (path, review)
    lines = []
    for _, review in reviews.values():
        kept, replaced = keep_review(folder, review)
        before = f", in place of {_amount(replaced)}" if replaced else ""
        lines.append(f"reviews: {review.reviewer}: {_amount(review)}{before}; kept as {kept}")
    return lines


def _amount(review: Review) -> str:
    return f"{len(review.ratings)} scores, {len(review.votes)} votes"


def keep_review(folder: Path, review: Review) -> tuple[Path, Review | None]:
    """Write a review, one way for the same content; returns where to, and which one by the same person it replaces."""
    earlier = read_reviews(folder, review.responses)
    path = next((path for path, kept in earlier.items() if kept.reviewer == review.reviewer), None)
    kept = earlier[path] if path else None
    if path is None:
        slug, end = _slug(review.reviewer), f"{review.responses[:8]}.json"
        path = folder / f"{slug}-{end}"
        if path.exists():  # of another person whose name has the same letters
            path = folder / f"{slug}-{hashlib.sha256(review.reviewer.encode()).hexdigest()[:8]}-{end}"
    value = review.model_dump()
    write_json(path, value | {name: dict(sorted(value[name].items())) for name in ("scores", "votes")})
    return path, kept


def _slug(name: str) -> str:
    """A file name of ASCII letters and digits, whatever the name is.

    >>> _slug("../Ada Lóvelace")
    'ada-lovelace'
    """
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().lower()
    letters = re.sub("[^a-z0-9]+", "-", plain).strip("-")[:40].strip("-")
    return letters or f"reviewer-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
