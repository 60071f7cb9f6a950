"""From responses to scores, with a judge whose verdicts are known."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from stages.judging.embedded import SIGNALS, Verdict
from stages.judging.responses import Response
from stages.judging.scoring import judge_responses, score_table, write_scores
from stages.pipeline.files import read_parquet


class Exact:
    """100 for the reference itself, nothing readable for an answer that is a riddle, else 0."""

    def judge(self, rows: Sequence[Response], answers: Sequence[str]) -> list[Verdict]:
        signals = dict.fromkeys(SIGNALS, 0.5)
        return [
            Verdict(None if answer == "riddle" else 100.0 * (answer == row.reference), signals)
            for row, answer in zip(rows, answers, strict=True)
        ]


def row(name: str, response: str, base_response: str) -> Response:
    return Response(name, "a" if name < "c" else "b", f"Say {name}", "", name, response, "stop", base_response, "stop")


ROWS = [row("aa", "aa", "no"), row("bb", "no", "bb"), row("cc", "cc", "cc"), row("dd", "dd", "riddle")]


def test_each_answer_meets_its_own_row(tmp_path: Path) -> None:
    scored, summary = judge_responses(Exact(), ROWS, card_rows=4, confidence=0.9, resamples=100, seed=0)
    assert [(s.id, s.score, s.base_score, s.win) for s in scored] == [
        ("aa", 100, 0, 1), ("bb", 0, 100, 0), ("cc", 100, 100, 0.5), ("dd", 100, None, None)
    ]  # fmt: skip
    assert (summary["score"], summary["win_rate"], summary["confidence"]) == (75, 0.5, 0.9)
    assert summary["base_score"] == pytest.approx(66.6667)
    assert summary["invalid_fraction"] == pytest.approx(1 / 8)
    assert summary["judge_auc_by_corruption"]["empty"] > 0.5
    assert list(summary["by_category"]) == ["a", "b"]
    assert list(summary)[-1] == "by_category"
    write_scores(tmp_path / "scores.parquet", scored)
    assert [s["id"] for s in read_parquet(tmp_path / "scores.parquet")] == ["aa", "bb", "cc", "dd"]
    table = score_table(ROWS, scored)
    assert table["response"].tolist() == ["aa", "no", "cc", "dd"]
    assert table["win"].tolist()[:3] == [1, 0, 0.5]
    assert table["category"].tolist() == ["a", "a", "b", "b"]
