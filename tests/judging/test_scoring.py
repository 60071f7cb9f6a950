"""From responses to scores, with judges whose verdicts are known."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from stages.judging.panel import find_opponent
from stages.judging.responses import Response, write_responses
from stages.judging.scoring import (
    Judged,
    Opponent,
    base_of,
    figures_of,
    in_words,
    judge_with,
    opponent_of,
    said_of,
    score_rows,
    write_scores,
)
from stages.judging.verdicts import Preference, Said, Usage, Verdict, read_verdicts, write_verdicts
from stages.pipeline.errors import UserError
from stages.pipeline.files import read_parquet

KNOBS: dict[str, Any] = {"confidence": 0.9, "resamples": 100, "seed": 0}


class Exact:
    """100 for the reference itself, nothing readable for an answer that is a riddle, else 0; shown first wins a tie."""

    def __init__(self, name: str = "exact") -> None:
        self.name = name
        self.asked = 0

    def grade(self, rows: Sequence[Response], answers: Sequence[str], *, repeat: int = 0) -> list[Verdict]:
        self.asked += len(answers)
        return [self._of(row, answer) for row, answer in zip(rows, answers, strict=True)]

    def _of(self, row: Response, answer: str) -> Verdict:
        return Verdict(None if answer == "riddle" else 100.0 * (answer == row.reference), {"equal": 0.5}, "my words")

    def compare(self, rows: Sequence[Response], first: Sequence[str], second: Sequence[str]) -> list[Preference]:
        self.asked += 2 * len(rows)
        found = []
        for row, *pair in zip(rows, first, second, strict=True):
            one, other = (self._of(row, answer).score for answer in pair)
            if one is None or other is None:
                found.append(Preference(None, None, "?"))
            elif one == other:
                found.append(Preference(1.0, 0.0, "the first, both times"))
            else:
                found.append(Preference(float(one > other), float(one > other)))
        return found

    def usage(self) -> Usage:
        return Usage(self.asked, 10 * self.asked, self.asked)


def row(name: str, response: str, base_response: str) -> Response:
    return Response(name, "a" if name < "c" else "b", f"Say {name}", "", name, response, "stop", base_response, "stop")


ROWS = [row("aa", "aa", "no"), row("bb", "no", "bb"), row("cc", "cc", "cc"), row("dd", "dd", "riddle")]


def judged(opponent: Opponent | None = None, name: str = "exact") -> Judged:
    return judge_with(Exact(name), ROWS, opponent, card_rows=4, seed=0)


def test_each_answer_meets_its_own_row(tmp_path: Path) -> None:
    scored = score_rows(ROWS, judged())
    assert [(s.id, s.score, s.base_score, s.win) for s in scored] == [
        ("aa", 100, 0, 1), ("bb", 0, 100, 0), ("cc", 100, 100, 0.5), ("dd", 100, None, None)
    ]  # fmt: skip
    assert {s.words for s in scored} == {1}
    summary = figures_of(ROWS, [judged()], **KNOBS)
    assert (summary["judge"], summary["score"], summary["win_rate"], summary["confidence"]) == ("exact", 75, 0.5, 0.9)
    assert summary["base_score"] == pytest.approx(66.6667)
    assert summary["invalid_fraction"] == pytest.approx(1 / 8)
    assert summary["judge_auc_by_corruption"]["empty"] > 0.5
    assert list(summary["by_category"]) == ["a", "b"]
    assert list(summary)[-2:] == ["by_category", "by_length"]
    assert "other_judges" not in summary
    write_scores(tmp_path / "scores.parquet", scored)
    assert [s["id"] for s in read_parquet(tmp_path / "scores.parquet")] == ["aa", "bb", "cc", "dd"]


def test_pairs_against_the_base_model_decide_the_win_rate() -> None:
    """Orders that disagree are a tie; an unreadable pair is counted, and averaged nowhere."""
    against_base = judged(base_of(ROWS))
    assert [s.win for s in score_rows(ROWS, against_base)] == [1, 0, 0.5, None]
    assert {s.opponent_win for s in score_rows(ROWS, against_base)} == {None}
    summary = figures_of(ROWS, [against_base], **KNOBS)
    assert (summary["opponent"], summary["pairs"], summary["pairs_invalid_fraction"]) == ("base", 4, 0.25)
    assert summary["win_rate"] == 0.5
    assert summary["judge_position_consistency"] == pytest.approx(2 / 3, abs=1e-4)
    assert summary["judge_position_bias"] == pytest.approx(4 / 6 - 0.5, abs=1e-4)
    assert summary["judge_prompt_tokens"] == 10 * summary["judge_calls"] > 0


def test_pairs_against_another_experiment_leave_the_win_rate_alone() -> None:
    theirs = [row("aa", "no", ""), row("bb", "bb", ""), row("xx", "xx", "")]
    theirs.append(row("cc", "cc", "")._replace(reference="another"))  # no longer the same row
    opponent = opponent_of("rival", ROWS, theirs)
    assert (opponent.name, opponent.answers) == ("rival", {"aa": "no", "bb": "bb"})
    against = judged(opponent)
    assert [s.opponent_win for s in score_rows(ROWS, against)] == [1, 0, None, None]
    assert [s.win for s in score_rows(ROWS, against)] == [1, 0, 0.5, None]
    summary = figures_of(ROWS, [against], **KNOBS)
    assert (summary["opponent"], summary["pairs"], summary["opponent_win_rate"]) == ("rival", 2, 0.5)
    with pytest.raises(UserError, match="rival has answered none of the same rows"):
        opponent_of("rival", ROWS, theirs[2:])


def test_several_judges_stand_side_by_side() -> None:
    both = [judged(base_of(ROWS)), judged(base_of(ROWS), "second")]
    summary = figures_of(ROWS, both, **KNOBS)
    assert summary["judge"] == "exact"
    (name,) = summary["other_judges"]
    other = summary["other_judges"][name]
    assert name == "second"
    assert {k: other[k] for k in ("score", "win_rate", "judge_auc")} == {
        k: summary[k] for k in ("score", "win_rate", "judge_auc")
    }
    assert not {"exact_match", "rows", "by_category"} & other.keys()


def test_every_word_is_kept(tmp_path: Path) -> None:
    said = said_of(ROWS, [judged(base_of(ROWS)), judged(None, "second")])
    assert [one.judge for one in said] == ["exact"] * 12 + ["second"] * 8
    assert said[0] == Said("exact", "grade", "aa", "response", 100.0, None, None, "my words")
    assert said[7] == Said("exact", "grade", "dd", "base_response", None, None, None, "my words")
    assert said[10] == Said("exact", "pairwise", "cc", "base", 0.5, 1.0, 0.0, "the first, both times")
    assert said[11].score is None
    path = tmp_path / "verdicts.parquet"
    write_verdicts(path, said, {"responses_sha256": "0" * 64})
    assert read_verdicts(path) == (said, {"responses_sha256": "0" * 64})


def test_whom_the_parameter_names(tmp_path: Path) -> None:
    write_responses(tmp_path / "rival.parquet", [ROWS[0]], {})
    assert find_opponent("none", ROWS, tmp_path) is None
    assert find_opponent("base", ROWS, tmp_path) == base_of(ROWS)
    assert find_opponent("rival", ROWS, tmp_path) == ("rival", {"aa": "aa"})
    with pytest.raises(UserError, match=r"judge\.pairwise: no responses called 'rivale'; known: base, none, rival;"):
        find_opponent("rivale", ROWS, tmp_path)


def test_the_end_in_words() -> None:
    figures = {"judge": "j", "score": 34.26, "base_score": 17.0, "win_rate": 0.5, "judge_auc": 0.9, "judge_reliable": 1}
    assert in_words(figures | {"invalid_fraction": 0.0}) == (
        "score 34.3 against 17.0 for the base model, win rate 0.50; judge AUC 0.90"
    )
    shaky = in_words(figures | {"judge_reliable": 0, "invalid_fraction": 0.125})
    assert shaky.endswith("judge AUC 0.90: THIS JUDGE CANNOT BE RELIED ON; 12.5% of verdicts invalid")
    assert "not one verdict of j could be read" in in_words({"judge": "j", "invalid_fraction": 1.0})
