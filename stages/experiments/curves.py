"""Loss curves as one picture for a page: vector graphics in the page's own colours, drawn without a script."""

import math
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from matplotlib.ticker import MaxNLocator

from stages.pipeline.errors import UserError

WIDTH, PLOT_HEIGHT = 600, 300
LEFT, RIGHT, TOP, BOTTOM = 62, 16, 12, 52
"""Margins of the plot, in the units of the picture; above it, `LINE` a line of the legend and of the onsets."""
LINE = 22

COLOURS = ("var(--a, #2f55d4)", "var(--b, #b4471f)", "var(--c, #2c7a4b)", "var(--d, #8a3fa0)", "var(--e, #8a6d00)")
INK, SOFT, GRID = "var(--ink, currentColor)", "var(--soft, #667)", "var(--line, #ccd)"
TRAIN_DASHES = "6 4"

SHOWN = 44
"""Characters of a name that are shown."""


class Curve(NamedTuple):
    """The losses of one training."""

    name: str
    rows: Sequence[Mapping[str, float]]
    """Those of metrics/losses.csv: `epoch`, `train_loss`, `validation_loss` (nats per token) and others."""
    onset: float | None
    """Epoch at which overfitting began; None: not seen."""
    confirmed: bool


class _Scale(NamedTuple):
    low: float
    high: float
    start: float
    end: float
    """Where `low` and `high` are drawn."""

    def __call__(self, value: float) -> str:
        at = self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)
        return f"{at:.1f}"


def curve_of(name: str, losses: Path, finetuned: Mapping[str, Any]) -> Curve:
    """The curve that a metrics/losses.csv tells, with the onset of a metrics/finetune.json (empty: none known).

    Raises:
        UserError: the table is missing or damaged.
    """
    try:
        table = pd.read_csv(losses)
    except FileNotFoundError:
        raise UserError(f"{losses}: not found; run `dvc repro finetune` to make it") from None
    except ValueError:
        raise UserError(f"{losses}: damaged; delete it and run `dvc repro finetune`") from None
    missing = {"epoch", "train_loss", "validation_loss"} - set(table.columns)
    if missing:
        raise UserError(f"{losses}: has no column {sorted(missing)[0]}; delete it and run `dvc repro finetune`")
    rows = [{str(key): value for key, value in row.items()} for row in table.to_dict("records")]
    onset = finetuned.get("overfit_epoch", -1)
    return Curve(name, rows, onset if onset >= 0 else None, bool(finetuned.get("overfit_confirmed")))


def loss_svg(curves: Sequence[Curve]) -> str:
    """An `<svg>` element of all curves: validation solid, training dashed, each onset a line with its epoch.

    Colours are the page's `--a`, `--b` ... (curves), `--ink`, `--soft` and `--line`. Values that are no finite number
    are left out. The same curves give the same text.
    """
    legend = list(_legend(curves))
    top = TOP + LINE * len(legend) + LINE * sum(curve.onset is not None for curve in curves)
    bottom = top + PLOT_HEIGHT
    points = [(epoch, loss) for curve in curves for kind in _KINDS for epoch, loss, _ in _points(curve, kind)]
    onsets = [curve.onset for curve in curves if curve.onset is not None]
    across = _Scale(*_limits([0.0, *onsets, *(epoch for epoch, _ in points)]), LEFT, WIDTH - RIGHT)
    up = _Scale(*_limits([loss for _, loss in points]), bottom, top)
    parts = [*legend, *_axes(across, up)]
    for number, curve in enumerate(curves):
        parts += _lines(curve, _colour(number), across, up)
    parts += _onsets(curves, across, TOP + LINE * len(legend), bottom)
    height = bottom + BOTTOM
    return (
        f'<svg class="losses" viewBox="0 0 {WIDTH} {height}" width="100%" role="img" font-size="14" fill="{INK}" '
        f'aria-label="{escape(_in_words(curves))}" xmlns="http://www.w3.org/2000/svg">\n'
        + "\n".join(parts)
        + "\n</svg>"
    )


_KINDS = {"train_loss": "training", "validation_loss": "validation"}


def _points(curve: Curve, kind: str) -> Iterator[tuple[float, float, Mapping[str, float]]]:
    for row in curve.rows:
        epoch, loss = float(row["epoch"]), float(row[kind])
        if math.isfinite(epoch) and math.isfinite(loss):
            yield epoch, loss, row


def _limits(values: Sequence[float]) -> tuple[float, float]:
    """Ends of an axis, with room around the values, also where all are the same."""
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    if high - low <= 1e-3 * abs(high):
        room = 0.5 * abs(high) or 0.5
        return (0.0 if low == 0 else low - room), high + room
    room = 0.04 * (high - low)
    return (0.0 if low == 0 else low - room), high + room


def _colour(number: int) -> str:
    return COLOURS[number % len(COLOURS)]


def _short(name: str) -> str:
    return escape(name if len(name) <= SHOWN else name[: SHOWN - 1] + "…")


def _number(value: float) -> str:
    return f"{value:.6g}"


# ---- parts of the picture


def _text(x: float | str, y: float | str, text: str, **attributes: str) -> str:
    given = "".join(f' {name.replace("_", "-")}="{value}"' for name, value in attributes.items())
    return f'<text x="{x}" y="{y}"{given}>{text}</text>'


def _line(x: tuple[float | str, float | str], y: tuple[float | str, float | str], stroke: str, **more: str) -> str:
    given = "".join(f' {name.replace("_", "-")}="{value}"' for name, value in more.items())
    return f'<line x1="{x[0]}" x2="{x[1]}" y1="{y[0]}" y2="{y[1]}" stroke="{stroke}"{given}/>'


def _legend(curves: Sequence[Curve]) -> Iterator[str]:
    """A line on the kinds of line, and one for each curve where there are several."""
    colour, y = (_colour(0) if len(curves) == 1 else SOFT), TOP + 10
    yield "".join(
        (
            _line((LEFT, LEFT + 30), (y, y), colour, stroke_width="2.5"),
            _text(LEFT + 38, y + 5, "validation loss"),
            _line((LEFT + 200, LEFT + 230), (y, y), colour, stroke_width="2", stroke_dasharray=TRAIN_DASHES),
            _text(LEFT + 238, y + 5, "training loss"),
            _text(WIDTH - RIGHT, y + 5, "nats a token", text_anchor="end", fill=SOFT),
        )
    )
    if len(curves) > 1:
        for number, curve in enumerate(curves):
            y += LINE
            swatch = f'<rect x="{LEFT}" y="{y - 6}" width="30" height="12" rx="3" fill="{_colour(number)}"/>'
            yield swatch + _text(LEFT + 38, y + 5, _short(curve.name))


def _axes(across: _Scale, up: _Scale) -> Iterator[str]:
    for value in _ticks(up):
        yield _line((LEFT, WIDTH - RIGHT), (up(value), up(value)), GRID)
        yield _text(LEFT - 8, up(value), f"{value:.10g}", text_anchor="end", dominant_baseline="middle", fill=SOFT)
    for value in _ticks(across):
        yield _text(across(value), up.start + 20, f"{value:.10g}", text_anchor="middle", fill=SOFT)
    yield _line((LEFT, WIDTH - RIGHT), (up.start, up.start), SOFT)
    yield _text((LEFT + WIDTH - RIGHT) / 2, up.start + 44, "epoch", text_anchor="middle", fill=SOFT)


def _ticks(scale: _Scale) -> list[float]:
    found = MaxNLocator(nbins=6, steps=[1, 2, 5, 10]).tick_values(scale.low, scale.high)
    return [float(value) for value in found if scale.low <= value <= scale.high]


def _lines(curve: Curve, colour: str, across: _Scale, up: _Scale) -> Iterator[str]:
    for kind, named in _KINDS.items():
        style = {"stroke_width": "2", "stroke_dasharray": TRAIN_DASHES} if kind == "train_loss" else {}
        style = style or {"stroke_width": "2.5"}
        given = "".join(f' {name.replace("_", "-")}="{value}"' for name, value in style.items())
        path = " ".join(f"{across(epoch)},{up(loss)}" for epoch, loss, _ in _points(curve, kind))
        yield f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-linejoin="round"{given}/>'
        for epoch, loss, row in _points(curve, kind):
            step = f" (step {_number(row['step'])})" if "step" in row else ""
            about = escape(f"{curve.name}: epoch {_number(epoch)}{step}: {named} loss {_number(loss)}")
            radius = "3" if kind == "train_loss" else "4"
            yield (
                f'<circle cx="{across(epoch)}" cy="{up(loss)}" r="{radius}" fill="{colour}">'
                f"<title>{about}</title></circle>"
            )


def _onsets(curves: Sequence[Curve], across: _Scale, top: float, bottom: float) -> Iterator[str]:
    """A line and a label each, the labels below each other."""
    y = top
    for number, curve in enumerate(curves):
        if curve.onset is None:
            continue
        at, colour = across(curve.onset), _colour(number)
        label = f"{'overfitting from' if curve.confirmed else 'unconfirmed onset,'} epoch {curve.onset:.2f}"
        right = float(at) > WIDTH / 2
        yield _line((at, at), (f"{y:g}", f"{bottom:g}"), colour, stroke_width="1.5", stroke_dasharray="2 3")
        x, anchor = (float(at) - 8, "end") if right else (float(at) + 8, "start")
        yield _text(f"{x:.1f}", f"{y + 14:g}", label, text_anchor=anchor, fill=colour, font_weight="600")
        y += LINE


def _in_words(curves: Sequence[Curve]) -> str:
    """The picture for who cannot see it."""
    told = []
    for curve in curves:
        losses = [(loss, epoch) for epoch, loss, _ in _points(curve, "validation_loss")]
        best = min(losses, default=None)
        text = f"{curve.name}: "
        if best is None:
            text += "no validation loss"
        else:
            text += f"validation loss {_number(losses[0][0])} at first, {_number(best[0])} at its best at epoch "
            text += f"{_number(best[1])}, {_number(losses[-1][0])} at last"
        if curve.onset is not None:
            text += f"; overfitting from epoch {curve.onset:.2f}, {'' if curve.confirmed else 'not '}confirmed"
        told.append(text)
    return "Training and validation loss against epoch. " + ". ".join(told) + "."
