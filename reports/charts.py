"""Where the marks of a plot lie, in pixels of an inline SVG; templates draw them.

Each plot is laid out twice, for a wide page and for a phone, so that its text keeps its size on both.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

# Width and height of a plot on a wide page and on a phone, in CSS pixels.
SIZES: Mapping[str, tuple[int, int]] = {"wide": (760, 380), "narrow": (340, 300)}
# Steps between ticks, times a power of ten.
_STEPS = (1, 2, 5, 10)
_LOG_TICKS = (1, 1.5, 2, 3, 5, 7)
_MOST_TICKS = 6
# Height of the highest ridge, in steps from one to the next.
_OVERLAP = 4
# Height of all ridges together and of one step, in pixels, where they are few.
_RIDGES_HEIGHT, _MOST_STEP = 240, 28


@dataclass(frozen=True, kw_only=True)
class Axis:
    """One axis: values to pixels, and ticks.

    Attributes:
        low, high: Values at its ends.
        start, end: Pixels of its ends.
        ticks: Values to label.
        is_log: Whether equal ratios are equally far apart.
    """

    low: float
    high: float
    start: float
    end: float
    ticks: tuple[float, ...]
    is_log: bool = False

    @classmethod
    def linear(cls, high: float, *, start: float, end: float, low: float = 0.0) -> Axis:
        """Return an axis from the last tick that is not above `low` to the first that is not below `high`."""
        span = max(high - low, 1e-9)
        power = 10 ** math.floor(math.log10(span / _MOST_TICKS))
        step = next(own * power for own in _STEPS if span / (own * power) <= _MOST_TICKS)
        first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
        ticks = tuple(step * i for i in range(first, last + 1))
        return cls(low=ticks[0], high=ticks[-1], start=start, end=end, ticks=ticks)

    @classmethod
    def log(cls, values: Sequence[float], *, start: float, end: float) -> Axis:
        """Return an axis of ratios around positive values."""
        low, high = min(values) / 1.25, max(values) * 1.25
        decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        ticks = [own * 10.0**decade for decade in decades for own in _LOG_TICKS]
        inside = [tick for tick in ticks if low <= tick <= high]
        while len(inside) > _MOST_TICKS + 1:
            inside = inside[::2]
        return cls(low=low, high=high, start=start, end=end, ticks=tuple(inside), is_log=True)

    def at(self, value: float) -> float:
        """Return the pixel of a value."""
        if self.is_log:
            share = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return round(self.start + share * (self.end - self.start), 1)


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A plot at one size.

    Attributes:
        size: "wide" or "narrow".
        width, height: Pixels.
        x, y: Axes.
        x_label, y_label: Their names.
        marks: Whatever the template draws, with positions in pixels.
        is_share: Whether the values of x are shares, shown as percents.
    """

    size: str
    width: int
    height: int
    x: Axis
    y: Axis
    x_label: str
    y_label: str
    marks: Sequence[dict[str, Any]]
    is_share: bool = False
    lines: Sequence[dict[str, Any]] = field(default_factory=tuple)


def candidates_charts(rows: Sequence[dict[str, Any]], *, y_label: str) -> list[Chart]:
    """Place each candidate at its milliseconds and its score; symbols by runtime, numbers in the given order."""
    if len(rows) < 2:
        return []
    series = list(dict.fromkeys(_series(row) for row in rows))
    charts = []
    for size, (width, _) in SIZES.items():
        scores = [row["score"] for row in rows]
        x, y = _frame(size, [row["milliseconds"] for row in rows], scores, scale="log")
        marks = [
            {
                **row,
                "number": number,
                "series": series.index(_series(row)),
                "left": x.at(row["milliseconds"]),
                "top": y.at(row["score"]),
            }
            for number, row in enumerate(rows, 1)
        ]
        labels = {"x_label": "milliseconds per image", "y_label": y_label}
        charts.append(_framed(size, x, y, marks=_apart(marks, width), **labels))
    return charts


def _series(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return row.get("runtime"), row.get("precision"), row.get("threads")


def _apart(marks: list[dict[str, Any]], width: int) -> list[dict[str, Any]]:
    """Give each mark the side of its number on which no other mark is near."""
    for mark in marks:
        sides = {"right": (16, 4), "left": (-16, 4), "above": (0, -13), "below": (0, 21)}
        distances = {}
        for side, (dx, dy) in sides.items():
            place = (mark["left"] + dx, mark["top"] + dy - 4)
            others = [math.dist(place, (other["left"], other["top"])) for other in marks if other is not mark]
            others += [math.dist(place, other["label_at"]) for other in marks if "label_at" in other]
            distances[side] = min([*others, 24.0]) - (100 if place[0] > width - 8 else 0)
        best = max(distances, key=lambda side: distances[side])
        dx, dy = sides[best]
        mark["label_at"] = (round(mark["left"] + dx, 1), round(mark["top"] + dy, 1))
    return marks


def scan_charts(scan: Mapping[str, Any], names: Sequence[str], *, labels: Sequence[str]) -> list[Chart]:
    """Place the scores of a scan over the share of channels pruned, a line for each score."""
    points = scan["points"]
    charts = []
    for size in SIZES:
        scores = [point[name] for point in points for name in names]
        shares = [*(point["percent"] for point in points), scan["recommended"], scan["limit"]]
        x, y = _frame(size, shares, scores, scale="share")
        lines = [
            {
                "label": label,
                "series": series,
                "points": [
                    {"left": x.at(point["percent"]), "top": y.at(point[name]), **point, "score": point[name]}
                    for point in points
                ],
            }
            for series, (name, label) in enumerate(zip(names, labels, strict=True))
        ]
        rules = [{"left": x.at(scan[name]), "name": name, "value": scan[name]} for name in ("recommended", "limit")]
        named = {"x_label": "share of channels pruned, before any fine-tuning", "y_label": ", ".join(labels)}
        charts.append(_framed(size, x, y, marks=rules, lines=lines, is_share=True, **named))
    return charts


def _frame(
    size: str, values: Sequence[float], scores: Sequence[float], *, scale: Literal["log", "share"]
) -> tuple[Axis, Axis]:
    """Return the axes of a plot of this size; scores begin at 0, or below the lowest where all are alike."""
    width, height = SIZES[size]
    left, right, top, bottom = 44, width - 14, 14, height - 46
    x = Axis.log(values, start=left, end=right) if scale == "log" else Axis.linear(max(values), start=left, end=right)
    lowest, highest = min(scores), max(*scores, 0.01)
    # Small differences are what candidates are chosen by; a hundredth around them keeps noise from filling the plot.
    low = max(0.0, lowest - 0.01 - (highest - lowest) / 5) if lowest > highest / 2 else 0.0
    return x, Axis.linear(highest, start=bottom, end=top, low=low)


def _framed(size: str, x: Axis, y: Axis, **drawn: Any) -> Chart:
    """Return the plot of the axes of `_frame`."""
    width, height = SIZES[size]
    return Chart(size=size, width=width, height=height, x=x, y=y, **drawn)


def ridge_charts(scale: Mapping[str, Any]) -> list[Chart]:
    """Place one histogram per epoch, the first at the top and at the back, as filled paths."""
    ridges = scale.get("ridges") or []
    if not ridges:
        return []
    charts = []
    for size, (width, _) in SIZES.items():
        least, most_labels = (15, 12) if size == "wide" else (12, 8)
        step = min(max(_RIDGES_HEIGHT // len(ridges), least), _MOST_STEP)
        tall = _OVERLAP * step
        bottom = tall + step * (len(ridges) - 1) + 6
        last = float(scale["edges"][-1])
        x = Axis.linear(last, start=44, end=width - 14)
        x = replace(x, high=last, ticks=tuple(tick for tick in x.ticks if tick <= last))
        charts.append(
            Chart(
                size=size,
                width=width,
                height=bottom + 46,
                x=x,
                y=Axis(low=0, high=1, start=bottom, end=tall, ticks=()),
                x_label=f"|{scale['scale']}| of the channels that may be pruned",
                y_label="after epoch",
                marks=_ridges(scale, x, bottom=bottom, step=step, most_labels=most_labels),
            )
        )
    return charts


def _ridges(scale: Mapping[str, Any], x: Axis, *, bottom: int, step: int, most_labels: int) -> list[dict[str, Any]]:
    """Return the outlines of the histograms, `step` pixels apart."""
    ridges, edges = scale["ridges"], np.array(scale["edges"], np.float64)
    centres = [x.at(float(value)) for value in (edges[:-1] + edges[1:]) / 2]
    # The square root, because at the end nearly all channels are in the first bin.
    heights = np.sqrt(np.array([ridge["channels"] for ridge in ridges], np.float64))
    heights *= _OVERLAP * step / max(1.0, float(heights.max()))
    last, every = len(ridges) - 1, math.ceil(len(ridges) / most_labels)
    marks = []
    for place, ridge in enumerate(ridges):
        base = bottom - step * (last - place)
        line = " ".join(f"{left},{base - height:.1f}" for left, height in zip(centres, heights[place], strict=True))
        marks.append(
            {
                "epoch": ridge["epoch"],
                "base": base,
                "line": line,
                "area": f"{centres[0]},{base} {line} {centres[-1]},{base}",
                "share": place / max(1, last),
                "is_labelled": place == last or (place % every == 0 and last - place >= every),
                "channels": sum(ridge["channels"]),
                "near_zero": ridge["channels"][0],
            }
        )
    return marks
