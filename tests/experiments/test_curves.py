"""The picture of loss curves, read as the XML it is."""

import math
import re
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import pytest

from stages.experiments.curves import WIDTH, Curve, curve_of, loss_svg
from stages.pipeline.errors import UserError

SVG = "{http://www.w3.org/2000/svg}"
HOSTILE = '</title></svg><script>alert(1)</script>" onload="alert(2)\' & <b>'


def rows(*losses: tuple[float, float, float]) -> list[dict[str, float]]:
    return [dict(zip(("epoch", "train_loss", "validation_loss"), row, strict=True)) for row in losses]


FALLING = rows((0, 2.0, 2.5), (0.5, 1.5, 1.75), (1, 1.0, 1.5), (1.5, 0.5, 2.0))


def drawn(*curves: Curve) -> ElementTree.Element:
    """The picture; every number in it is finite, and every place inside it."""
    text = loss_svg(curves)
    picture = ElementTree.fromstring(text)
    assert loss_svg(curves) == text
    height = float(picture.attrib["viewBox"].split()[3])
    for element in picture.iter():
        for name, most in (("cx", WIDTH), ("x1", WIDTH), ("x2", WIDTH), ("x", WIDTH), ("cy", height), ("y1", height)):
            if name in element.attrib:
                assert 0 <= float(element.attrib[name]) <= most, (element.tag, element.attrib)
    assert {element.tag.removeprefix(SVG) for element in picture.iter()} <= {
        "svg", "text", "line", "rect", "polyline", "circle", "title",
    }  # fmt: skip
    return picture


def lines(picture: ElementTree.Element) -> list[list[tuple[float, float]]]:
    found = [element.attrib["points"] for element in picture.iter(f"{SVG}polyline")]
    pairs = [[point.split(",") for point in points.split()] for points in found]
    return [[(float(x), float(y)) for x, y in line] for line in pairs]


def words(picture: ElementTree.Element) -> list[str]:
    return [element.text or "" for element in picture.iter(f"{SVG}text")]


def test_lines_stand_where_the_losses_are() -> None:
    picture = drawn(Curve("mine", FALLING, 1.0, True))
    train, validation = lines(picture)
    assert [x for x, _ in train] == [x for x, _ in validation]
    gaps = [b[0] - a[0] for a, b in pairwise(train)]
    assert max(gaps) - min(gaps) < 0.3  # a tenth is rounded off
    slope = (train[3][1] - train[0][1]) / -1.5  # units a nat, downwards
    for (_, y), row in zip(validation, FALLING, strict=True):
        assert y == pytest.approx(train[0][1] + slope * (row["validation_loss"] - 2.0), abs=0.3)
    titles = [element.text for element in picture.iter(f"{SVG}title")]
    assert titles[-1] == "mine: epoch 1.5: validation loss 2"
    dashed = [bool(line.get("stroke-dasharray")) for line in picture.iter(f"{SVG}polyline")]
    assert dashed == [True, False]


def test_the_onset_is_a_line_at_its_epoch() -> None:
    picture = drawn(Curve("mine", FALLING, 1.0, True))
    (at,) = {line.attrib["x1"] for line in picture.iter(f"{SVG}line") if line.get("stroke-dasharray") == "2 3"}
    assert float(at) == lines(picture)[1][2][0]
    assert "overfitting from epoch 1.00" in words(picture)
    assert "unconfirmed onset, epoch 1.00" in words(drawn(Curve("mine", FALLING, 1.0, False)))
    assert not any("epoch 1" in text for text in words(drawn(Curve("mine", FALLING, None, False))))


def test_several_experiments_have_colours_and_names() -> None:
    picture = drawn(Curve("one", FALLING, 1.0, True), Curve(HOSTILE, FALLING[:2], 0.5, False))
    colours = [line.attrib["stroke"] for line in picture.iter(f"{SVG}polyline")]
    assert colours[0] == colours[1] != colours[2] == colours[3]
    assert {"one", HOSTILE[:43] + "…"} <= set(words(picture))
    assert HOSTILE in picture.attrib["aria-label"]


@pytest.mark.parametrize(
    "losses",
    [
        rows((0, 2.0, 2.0)),
        rows((0, 2.0, 2.0), (1, 2.0, 2.0)),
        rows((0, 0.0, 0.0), (1, 0.0, 0.0)),
        rows((0, 1e300, 1e-300), (1, -5.0, 2.0)),
        rows((0, math.nan, math.inf), (1, 1.0, math.nan), (2, 0.5, -math.inf)),
        rows((0, math.nan, math.nan)),
        rows((0, 1.3727651, 1.3727652), (1, 1.3727653, 1.3727654)),
        [],
    ],
)
def test_any_losses_make_a_picture(losses: list[dict[str, float]]) -> None:
    picture = drawn(Curve("odd", losses, 0.0, True))
    finite = sum(math.isfinite(row[kind]) for row in losses for kind in ("train_loss", "validation_loss"))
    assert sum(1 for _ in picture.iter(f"{SVG}circle")) == finite
    ticks = [text for text in words(picture) if re.fullmatch(r"[-\d.e+]+", text)]
    assert 3 <= len(ticks) <= 20


def test_read_from_files(tmp_path: Path) -> None:
    path = tmp_path / "losses.csv"
    path.write_text("step,epoch,train_loss,validation_loss\n0,0,2,2.5\n4,0.5,nan,1.75\n")
    curve = curve_of("x", path, {"overfit_epoch": 0.5, "overfit_confirmed": 1})
    assert (curve.onset, curve.confirmed, curve.rows[1]["step"]) == (0.5, True, 4)
    assert curve_of("x", path, {"overfit_epoch": -1, "overfit_confirmed": 0}).onset is None
    assert curve_of("x", path, {}).onset is None
    for text in ("", "a,b\n1,2\n", 'epoch\n"'):
        path.write_text(text)
        with pytest.raises(UserError, match=r"losses\.csv"):
            curve_of("x", path, {})
    with pytest.raises(UserError, match="not found"):
        curve_of("x", tmp_path / "none.csv", {})
