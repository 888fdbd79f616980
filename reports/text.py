"""Numbers and sentences of a report in words for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from engine.evaluation.evaluator import label as score_label

# Difference of scores below which two networks have the same one.
_SAME_SCORE = 0.002
_NONE = "–"
_MINUS = "−"


def label(name: str) -> str:
    """Return the label of a score, such as "mAP50" for "AP50"."""
    return score_label(name)


def score(value: float | None) -> str:
    """Format a score from 0 to 1 with three digits, without the zero before the point."""
    if value is None:
        return _NONE
    return f"{value:.3f}".removeprefix("0") if value < 0.9995 else "1.00"


def signed(value: float | None) -> str:
    """Format a difference of scores with its sign."""
    if value is None:
        return _NONE
    number = f"{abs(value):.3f}".removeprefix("0")
    return "±.000" if number == ".000" else f"{'+' if value > 0 else _MINUS}{number}"


def direction(value: float) -> str:
    """Return "up" or "down" for a difference of scores; "" where `signed` shows none."""
    if abs(value) < 0.0005:
        return ""
    return "up" if value > 0 else "down"


def bounds(interval: Sequence[float], *, is_signed: bool = False) -> str:
    """Format an interval."""
    form = signed if is_signed else score
    low, high = (form(value).replace("±", "") for value in interval)
    return f"{low} to {high}"


def count(value: float) -> str:
    """Format a number of things, with separated thousands."""
    return f"{value:,.0f}".replace(",", "\u202f")


def macs(value: float) -> str:
    """Format multiply-adds with their unit."""
    return f"{_digits(value / 1e9)} G" if value >= 999.5e6 else f"{_digits(value / 1e6)} M"


def size(megabytes: float) -> str:
    """Format a size given in 10^6 bytes, with its unit."""
    return f"{megabytes:.2f} MB" if megabytes >= 1 else f"{megabytes * 1000:.0f} kB"


def ms(value: float) -> str:
    """Format milliseconds with their unit, three digits."""
    return f"{_digits(value)} ms"


def _digits(value: float) -> str:
    """Format a number with at least three digits, zeros at its end among them."""
    return f"{value:.0f}" if value >= 99.95 else f"{value:#.3g}"


def factor(value: float) -> str:
    """Format a ratio, such as "2.6"."""
    return f"{value:.0f}" if value >= 9.95 else f"{value:.1f}"


def percent(value: float) -> str:
    """Format a share; 100 % only where nothing is missing."""
    digits = f"{value:.1%}".replace(".0%", "%")
    return ("99.9%" if digits == "100%" and value < 1 else digits).replace("%", "\u202f%")


def tiny(value: float) -> str:
    """Format an error, such as "3e-06"."""
    return f"{value:.1e}"


def titles(report: Mapping[str, Any]) -> dict[str, str]:
    """Return names of the stages for people, such as "fine-tuned"; with the round where there are several."""
    stages = [row["stage"] for row in report["networks"]]
    is_one = len({stage.rpartition("/")[0] for stage in stages} - {""}) == 1
    found = {}
    for stage in stages:
        place, _, kind = stage.rpartition("/")
        name = {"prune": "pruned", "finetune": "fine-tuned", "uncut": "before the cut"}.get(kind, kind)
        found[stage] = name if is_one or not place else f"{name}, round {place.removeprefix('round')}"
    return found


def tick(value: float) -> str:
    """Format a score beside its axis, such as ".4"."""
    return f"{value:.3g}".removeprefix("0") or "0"


def headline(report: Mapping[str, Any]) -> str:
    """Return the answer in one sentence: what to ship, how much smaller and faster, at which score of that file."""
    answer = report["answer"]
    ship, drop = answer["ship"], answer.get("max_map_drop")
    # Where a run was to find what to start from, a dense network can be what it found.
    is_dense = answer.get("start", {}).get("cut_to") == 1
    if not answer["is_pruned"] and not drop and not is_dense:
        return "Nothing is pruned yet: this run has no finished cut"
    if ship and ship["passed"] is False:
        return f"Do not ship {Path(ship['path']).name}: it failed its verification"
    name = Path(ship["path"]).name if ship else answer["weights"]
    verb = "Ship" if ship and ship["passed"] else "Export"
    if not answer["is_pruned"]:
        own = f"no cut of this run is within {drop['allowed']:g} of its score" if drop else "no cut promises more"
        return f"{verb} {name}, the dense network: {own}"
    parts = []
    if "megabytes" in answer:
        parts.append(f"{factor(answer['megabytes']['factor'])} times smaller")
    if "milliseconds" in answer:
        time = answer["milliseconds"]
        parts.append(
            f"{factor(time['factor'])} times as fast ({'predicted' if time['is_predicted'] else 'measured'})"
        )
    elif ship and "milliseconds" in ship:
        parts.append(ms(ship["milliseconds"]))
    if "score" in answer:
        own, shipped = answer["score"], (ship or {}).get("score")
        now = own["after"] if shipped is None else shipped
        parts.append(f"{label(report['scores'][-1])} {score(now)} where it was {score(own['before'])}")
    return f"{verb} {name}: " + ", ".join(parts) if parts else f"{verb} {name}"


def remarks(report: Mapping[str, Any]) -> list[str]:
    """Return sentences that qualify the answer: what the difference of scores is worth, and what is not verified."""
    answer, name = report["answer"], label(report["scores"][-1])
    found = []
    if "max_map_drop" in answer:
        found.append(_sentence(answer["max_map_drop"]["reason"]))
    if "start" in answer:
        found.append(f"--start auto recommends: {answer['start']['reason']}.")
    if answer["is_pruned"] and "score" in answer:
        found.append(_difference(answer, name))
    if answer["is_pruned"] and not answer["is_finetuned"]:
        found.append("The pruned network is not fine-tuned yet; its score is that right after the cut.")
    stages = [row["stage"] for row in report["networks"]]
    trained = report["networks"][: stages.index(answer["stage"]) + 1]
    epochs = {row["stage"]: row["epochs"] for row in trained if "epochs" in row}
    if answer["is_pruned"] and answer["reference"] == "dense" and "dense" in epochs and len(epochs) > 1:
        found.append(
            f"Not alike in training: the dense network had {epochs['dense']} epochs, the pruned one "
            f"{sum(epochs.values())} in all."
        )
    if answer["is_pruned"] and answer["reference"].endswith("/sparse"):
        found.append(
            f"The network before is the one after the first sparse training ({answer['reference']}): this run has no "
            "dense stage, and sparse training can cost accuracy itself."
        )
    found += _better_ones(report) if answer["is_pruned"] else []
    if "target" in answer:
        found.append(answer["target"][0].upper() + answer["target"][1:] + ".")
    ship = answer["ship"]
    if ship and ship["passed"] and "score" in answer and "score" in ship:
        found += _exported(ship, answer["score"]["after"], name)
    if ship is None and answer["is_pruned"]:
        found.append(
            "Nothing was exported, so nothing is verified on the runtime that will serve it: "
            f"python export.py --weights {report['run']}/{answer['weights']} --include ncnn --data {report['data']}"
        )
    elif ship and ship["passed"] is None:
        found.append(f"{Path(ship['path']).name} was built but not run: the machine that built it cannot.")
    return found


def _sentence(line: str) -> str:
    return f"{line[0].upper()}{line[1:]}."


def _difference(answer: Mapping[str, Any], name: str) -> str:
    """Say how much the score changed, and whether these images can tell it from chance."""
    own, images = answer["score"], f"{answer['images']} images" if "images" in answer else "val"
    change = f"{name} {'rises' if own['difference'] > 0 else 'falls'} by {score(abs(own['difference']))}"
    if "change" not in own:
        spread = f" (95 % interval of {name} over images: {bounds(own['interval'])})" if "interval" in own else ""
        return f"{change} on {images}{spread}."
    low, high = own["change"]
    between = f"95 % interval over images {bounds(own['change'], is_signed=True)}"
    if low <= 0 <= high:
        return f"{images} cannot tell the two networks apart: {change}, {between}."
    return f"{change} on {images}, more than chance over images explains: {between}."


def _exported(ship: Mapping[str, Any], after: float, name: str) -> list[str]:
    """Say which score the exported file has, where it is not that of its network but for rounding."""
    if abs(ship["score"] - after) < _SAME_SCORE:
        return []
    return [
        f"{Path(ship['path']).name} itself has {name} {score(ship['score'])}; its network has {score(after)}, and "
        f"{score(ship['network_score'])} on the images as the file takes them."
    ]


def _better_ones(report: Mapping[str, Any]) -> list[str]:
    """Say which networks that the run did not prune are as fast as the pruned one, and as good."""
    rows, name = report.get("candidates", []), label(report["scores"][-1])
    found = []
    for other in (row for row in rows if row.get("is_alternative")):
        alike = {key: other[key] for key in ("runtime", "precision", "threads")}
        own = [row for row in rows if row["name"] == report["answer"]["stage"] and alike.items() <= row.items()]
        # A measured time of the pruned network counts more than a predicted one.
        pruned = next((row for row in own if not row["is_predicted"]), next(iter(own), None))
        if pruned and other["milliseconds"] <= pruned["milliseconds"] and other["score"] >= pruned["score"]:
            found.append(
                f"Pruning did not pay here: {other['name']} has {name} {score(other['score'])} in "
                f"{ms(other['milliseconds'])}, the pruned network {score(pruned['score'])} in "
                f"{ms(pruned['milliseconds'])} ({other['runtime'] or 'the same runtime'})."
            )
    return found
