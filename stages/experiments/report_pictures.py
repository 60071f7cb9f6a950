"""Small pictures of the report: how lengths are distributed, and where a score lies with its interval."""

import math
from html import escape

import numpy as np

BINS = 24
WIDTH, HEIGHT, BELOW = 300, 80, 18
"""Of a histogram: its bars, and what is below them."""


def histogram_svg(values: np.ndarray) -> str:
    """Whole numbers (n,), n at least 1, as bars; the highest hundredth shares the last bar with what is beside it."""
    most = int(values.max())
    step = max(1, math.ceil((float(np.percentile(values, 99)) + 1) / BINS))
    places = np.minimum(values // step, BINS - 1)
    counts = np.bincount(places, minlength=int(places.max()) + 1)
    wide = WIDTH / len(counts)
    bars = []
    for at, count in enumerate(counts.tolist()):
        if count:
            last = most if at == len(counts) - 1 else at * step + step - 1
            about = f"{at * step} to {last} tokens: {count}"
            height = max(1.5, count / int(counts.max()) * (HEIGHT - 4))
            bars.append(
                f'<rect x="{at * wide + 0.5:.1f}" y="{HEIGHT - height:.1f}" width="{wide - 1:.1f}" '
                f'height="{height:.1f}" fill="var(--a)"><title>{about}</title></rect>'
            )
    over = "+" if most >= len(counts) * step else ""
    ends = (("0", 0, "start"), (f"{(len(counts) - 1) * step}{over}" if over else str(most), WIDTH, "end"))
    labels = [
        f'<text x="{x}" y="{HEIGHT + 14}" text-anchor="{anchor}" fill="var(--soft)">{text}</text>'
        for text, x, anchor in ends
    ]
    words = f"{len(values)} examples, {int(values.min())} to {most} tokens"
    axis = f'<line x1="0" x2="{WIDTH}" y1="{HEIGHT}" y2="{HEIGHT}" stroke="var(--soft)"/>'
    return (
        f'<svg class="histogram" viewBox="0 0 {WIDTH} {HEIGHT + BELOW}" role="img" aria-label="{words}" '
        f'font-size="10">{"".join(bars)}{axis}{"".join(labels)}</svg>'
    )


def score_svg(score: float, low: float | None, high: float | None, base: float | None) -> str:
    """A score of 0 to 100 as a dot on a line, its interval as a bar, the base model's as a ring."""
    words = f"{score:.1f}" + ("" if low is None or high is None else f" ({low:.1f} to {high:.1f})")
    words += "" if base is None else f", base model {base:.1f}"
    parts = [f'<line x1="{at}" x2="{at}" y1="2" y2="18" stroke="var(--line)"/>' for at in (6, 56, 106, 156, 206)]
    parts.append('<line x1="6" x2="206" y1="10" y2="10" stroke="var(--line)"/>')
    if low is not None and high is not None:
        parts.append(
            f'<line x1="{6 + 2 * low:.1f}" x2="{6 + 2 * high:.1f}" y1="10" y2="10" stroke="var(--a)" '
            'stroke-width="6" stroke-opacity=".35" stroke-linecap="round"/>'
        )
    if base is not None:
        parts.append(
            f'<circle cx="{6 + 2 * base:.1f}" cy="10" r="4" fill="var(--page)" stroke="var(--soft)" stroke-width="2"/>'
        )
    parts.append(f'<circle cx="{6 + 2 * score:.1f}" cy="10" r="4.5" fill="var(--a)"/>')
    return (
        f'<svg class="score" viewBox="0 0 212 20" role="img" aria-label="{escape(words)}">'
        f"<title>{escape(words)}</title>{''.join(parts)}</svg>"
    )
