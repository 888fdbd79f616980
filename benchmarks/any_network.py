"""Networks of torchvision and timm: what share of each can be pruned, and is the cut exact; beside torch-pruning.

Each network gets random numbers in float64, behind which nothing hides. 30 % of the channels that may be pruned are
chosen at random, every layer keeps one, and the network in which all that makes them is zero is compared with the cut
one. torch-pruning prunes the same network by its defaults, and what it removed is found by the values that are left.

Each measurement is a process of its own with a limit of time and memory, and its result a file: a run that was ended
goes on where it was. The report is written when all networks have results in the folder.

pip install torch-pruning==1.6.1
python -m benchmarks.any_network
python -m benchmarks.any_network --only "timm:regnet*" torchvision:resnet18 --again
"""

from __future__ import annotations

import logging
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatch
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.any_network_cases import WANTED, Case, all_cases
from benchmarks.any_network_children import WAYS, Limits, is_fault, measure_apart, read_result, result_path
from benchmarks.pruning_speed import import_torch_pruning
from benchmarks.report import report_path, table, write_report
from utils.config.cli import run_script
from utils.errors import ConfigError
from utils.storage.files import write_json

LOGGER = logging.getLogger(__name__)
_HEADER = (
    *("network", "px", "parameters, M", "channels that can be pruned", "the same by outputs of layers"),
    *("ours", "error", "parameters left", "torch-pruning", "error", "parameters left"),
)
# Share of the channels below which the table says what keeps the others.
_LITTLE = 0.5
_LEGEND = {
    "error": "largest difference between masked and cut network in float64, over the largest number; exact is below "
    "1e-10; ours is compared at a second size, too, where the network takes one",
    "differs": "the cut network is not the masked one; layer norms that torch-pruning cuts are compared over the "
    "channels left, other layers that average over channels are not",
    "exact, constants aside": "a masked channel leaves a constant, such as a bias of the whole map; without those "
    "who read it both are equal",
    "channels that can be pruned": "of those that layers make; channels that are joined count once, or by outputs of "
    "layers",
    "how torch-pruning runs": "MetaPruner, MagnitudeImportance, ratio .3, not global, classifiers and the last "
    "layers of feature pyramids ignored, no other advice",
}
Result = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class AnyNetworkConfig:
    """Prune many networks in ours and in torch-pruning's way, and compare masked with cut networks."""

    only: tuple[str, ...] = ("*",)  # patterns of names, such as "timm:*" or torchvision:resnet18
    folder: str = "runs/any_network"  # one file per network and way
    again: bool = False  # measure again what has a result
    peer: bool = True  # run torch-pruning, too
    seconds: int = 120  # processor time that one measurement may take
    memory: float = 12  # limit of one measurement, in GiB


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A network with its results, one for each way."""

    case: Case
    results: Mapping[str, Result]

    @classmethod
    def read(cls, case: Case, folder: Path) -> Entry:
        """Read what was measured; a network that is only planned has no cut to compare with."""
        found = {way: read_result(result_path(folder, case, way)) for way in WAYS}
        results = {way: result for way, result in found.items() if result is not None}
        if results.get("ours", {}).get("is_planned_only"):
            results["peer"] = {"verdict": "-"}
        return cls(case=case, results=results)

    @property
    def is_whole(self) -> bool:
        """Whether every way was measured."""
        return set(self.results) == set(WAYS)


def measure(config: AnyNetworkConfig) -> bool:
    """Measure what is missing, print the table, and write the report if it is whole; True if ours has no fault."""
    if config.peer:
        import_torch_pruning()
    folder = Path(config.folder)
    folder.mkdir(parents=True, exist_ok=True)
    ways = tuple(WAYS) if config.peer else ("ours",)
    for case in chosen(all_cases(), config.only):
        _measure_missing(case, ways, folder, config)
    every = [Entry.read(case, folder) for case in all_cases()]
    if all(entry.is_whole for entry in every):
        path = _write(every)
        sys.stdout.write(f"{path.read_text()}written to {path}\n")
        entries = every
    else:
        entries = [entry for entry in every if entry.case in chosen(all_cases(), config.only)]
        sys.stdout.write(f"{body_of(entries)}\n\n{summary(entries, 'ours')}\n")
    return not any(is_fault(entry.results["ours"]) for entry in entries)


def chosen(cases: Sequence[Case], patterns: Sequence[str]) -> list[Case]:
    """Return the networks that a pattern names.

    Raises:
        ConfigError: A pattern names none.
    """
    for pattern in patterns:
        if not any(fnmatch(case.name, pattern) for case in cases):
            raise ConfigError(
                f"--only {pattern}: no such network; names are as in {cases[0].name}, and listed in "
                "benchmarks/any_network_cases.py"
            )
    return [case for case in cases if any(fnmatch(case.name, pattern) for pattern in patterns)]


def _measure_missing(case: Case, ways: Sequence[str], folder: Path, config: AnyNetworkConfig) -> None:
    limits = Limits(seconds=config.seconds, gib=config.memory)
    for way in ways:
        if way in Entry.read(case, folder).results and not config.again:
            continue
        result = measure_apart(case, way, folder, limits)
        LOGGER.info("%s, %s: %s", case.name, way, " ".join(_cells(result)))


def body_of(entries: Sequence[Entry]) -> str:
    """Return the table of all networks, and below it what keeps the channels of those that can be pruned little."""
    lines = [table(_HEADER, [_row(entry) for entry in entries]), ""]
    for entry in entries:
        share = entry.results["ours"].get("share", 0.0)
        if share < WANTED.get(entry.case.name, _LITTLE):
            lines.append(f"- {entry.case.name}: {share:.0%}; {_reason(entry.results['ours'])}")
    return "\n".join(lines).strip()


def _row(entry: Entry) -> list[object]:
    ours = entry.results["ours"]
    share, by_outputs = (f"{ours[key]:.0%}" if key in ours else "" for key in ("share", "positions_share"))
    wanted = WANTED.get(entry.case.name)
    millions = f"{ours['parameters'] / 1e6:.1f}" if "parameters" in ours else ""
    return [
        *(entry.case.name, entry.case.side, millions),
        *(f"{share} (wanted {wanted:.0%})" if wanted else share, by_outputs),
        *_cells(ours),
        *_cells(entry.results.get("peer", {"verdict": "not run"})),
    ]


def _cells(result: Result) -> tuple[str, str, str]:
    """Return verdict, error and share of the parameters left."""
    errors = [result[key] for key in ("error", "further_error") if result.get(key) is not None]
    message = f": {result['message']}" if "message" in result else ""
    at = f" ({result['stage']})" if result["verdict"] == "crash" and "stage" in result else ""
    verdict = f"{result['verdict']}{at}{message}".replace("|", "/")
    return verdict, f"{max(errors):.0e}" if errors else "", f"{result['left']:.0%}" if "left" in result else ""


def _reason(result: Result) -> str:
    """Return why most of the channels that are kept are kept."""
    reasons = result.get("kept_because")
    if not reasons:
        return str(result.get("message", "no channel is protected"))
    reason, number = next(iter(reasons.items()))
    return f"{number} channels: {reason}"


def summary(entries: Sequence[Entry], way: str) -> str:
    """Return the numbers of networks by verdict, most frequent first."""
    verdicts = Counter(entry.results[way]["verdict"] for entry in entries)
    del verdicts["-"]
    return ", ".join(f"{number} {verdict}" for verdict, number in verdicts.most_common())


def _write(entries: Sequence[Entry]) -> Path:
    """Write the report and, beside it, all results as JSON."""
    listed = [{**asdict(entry.case), **entry.results} for entry in entries]
    write_json(report_path("any_network").with_suffix(".json"), listed)
    return write_report(
        "any_network",
        title="Networks of torchvision and timm: what can be pruned, and whether the cut is exact",
        body=body_of(entries),
        facts={
            "ours": summary(entries, "ours"),
            f"torch-pruning {version('torch-pruning')}": summary(entries, "peer"),
            "versions of the networks": f"torchvision {version('torchvision')}, timm {version('timm')}",
            **_LEGEND,
        },
    )


if __name__ == "__main__":
    run_script(measure, AnyNetworkConfig)
