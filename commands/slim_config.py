"""The settings of slim.py, and those of each of its stages."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

from commands.export_config import ExportConfig
from commands.finetune_config import FinetuneConfig
from commands.prune_config import PruneConfig
from commands.quantize_config import QuantizeConfig
from commands.train_config import TrainConfig
from commands.train_sparsity_config import AUTO, CHOICE, SparsityConfig
from pruning.choices import Shortcuts
from pruning.selection.settings import limits_per_round
from pruning.selection.targets import STEP, parse_target
from utils.errors import ConfigError

# Names of the stages, in the order in which they run; sparse, prune and finetune run in every round.
StageName: TypeAlias = Literal["dense", "sparse", "prune", "finetune", "export"]
STAGES: tuple[StageName, ...] = get_args(StageName)
# Most rounds under --max-map-drop by default: ten leave a ninth of the cost, beyond what a fine-tuning wins back.
_MOST_ROUNDS = 10


@dataclass(frozen=True, kw_only=True)
class SlimConfig(SparsityConfig):
    """Train, train sparse, prune, fine-tune and export in one run; --epochs is for each sparse training."""

    preset: str = ""  # settings of data/recipes: quick, full, or a YAML of yours; --config and flags override them
    # which stages run: dense sparse prune finetune export; by default all, dense only where weights lack the classes
    stages: tuple[StageName, ...] = ()
    # strength as for train_sparsity.py; auto, which is for --sparsity bn: what the cut will take fades to zero
    sr: float | Literal["auto"] | None = AUTO
    shortcuts: Shortcuts = "tied"  # channels that shortcuts join: tied prunes them together, skip leaves them dense
    # what the run starts from: weights, or auto: the best of --weights, --candidates and lower image sizes, by probes
    start: Literal["weights", "auto"] = "weights"
    candidates: tuple[str, ...] = ()  # further networks that --start auto compares, such as yolov5n.pt
    probe_epochs: int = 5  # passes over the training images in each probe of --start auto
    dry_run: bool = False  # show stages, estimated minutes and what the cut would leave; write nothing
    # times that sparse, prune and finetune are run; each cuts a part of what is to go; 10 at most with --max-map-drop
    rounds: int = 1
    dense_epochs: int = 100  # passes over the training images in the training of the dense network
    finetune_epochs: int = 100  # passes over the training images in each fine-tuning
    percent: float | None = None  # share of channels that each round cuts; 0.5 by default
    target: str = ""  # what the last round must reach: macs=50%, params=700K, ms=8, speedup=3; by equal factors
    # how much of the dense network's mAP50-95 or accuracy on val may be lost, such as 0.01: rounds that leave 80 % of
    # the time each go on until more is lost, or --target is reached; the last one that lost no more is exported
    max_map_drop: float | None = None
    # what the network is exported to, and where ms and speedup count: ncnn, onnx, openvino, torchscript or tensorrt
    runtime: str = "ncnn"
    # where int8 alone loses more than --max-map-drop: passes over the training images with simulated rounding
    qat_epochs: int = 20
    latency_layers: str = ""  # only write a folder of layers for another device to time, for --latency-table
    # weight of a teacher's answers in fine-tuning; the teacher is the dense network, or the first sparse one
    distill: float = 0.0
    teacher: str = ""  # another teacher for it
    features: float = FinetuneConfig.features  # weight of what the teacher's layers read, as for finetune_pruned.py
    resume: str = ""  # continue the latest run, or the run in this folder
    report: str = ""  # train nothing; write report.html and report.json of the run in this folder
    project: str = "runs/slim"  # where run folders are made

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("rounds", "dense_epochs", "finetune_epochs", "probe_epochs", "qat_epochs"):
            if getattr(self, name) < 1:
                flag = name.replace("_", "-")
                raise ConfigError(f"--{flag} {getattr(self, name)}: expected at least 1")
        if self.single_cls:
            raise ConfigError("--single-cls is not for several stages; give data of one class")
        if self.latency_layers and self.resume:
            raise ConfigError("--latency-layers only writes what a device needs to measure; leave --resume out")
        if self.dry_run and self.resume:
            raise ConfigError("--dry-run shows the plan of a new run; leave --resume out")
        self._check_start()
        self._check_drop()
        # Each stage checks its own settings; when its turn comes, hours of training may be lost.
        self.sparse_training("weights.pt", Path("sparse"), is_first=True)
        self.pruning("weights.pt", Path("prune"), target=self.target)
        self.finetuning("weights.pt", Path("finetune"), teacher=self.teacher)
        if "export" in (self.stages or STAGES):
            self.exporting("weights.pt", Path("export"))

    def _check_start(self) -> None:
        """Refuse settings that leave nothing to compare, or decide what the comparison does."""
        if self.candidates and self.start != AUTO:
            raise ConfigError(f"--candidates {' '.join(self.candidates)}: --start auto compares them; add it")
        if self.start != AUTO or self.resume:
            return
        if not self.target:
            raise ConfigError("--start auto compares networks by what they must reach; give --target, such as ms=8")
        if not self.weights:
            raise ConfigError("--start auto compares trained networks; give --weights, such as yolov5s.pt")
        for name in ("cfg", "stages", "latency_layers"):
            if getattr(self, name):
                flag = name.replace("_", "-")
                raise ConfigError(f"--start auto chooses network and stages of the run; leave --{flag} out")

    def _check_drop(self) -> None:
        """Refuse what leaves nothing to decide by scores, or nothing to measure them on."""
        if self.max_map_drop is None:
            return
        if not 0 <= self.max_map_drop < 1:
            raise ConfigError(
                f"--max-map-drop {self.max_map_drop}: expected points from 0 up to, not including, 1, such as 0.01"
            )
        if not self.data:
            raise ConfigError("--max-map-drop compares scores on val; give --data")
        if self.percent is not None:
            raise ConfigError("--percent and --max-map-drop both say how much to cut; leave one out")
        if self.start == AUTO:
            raise ConfigError(
                "--start auto compares networks by one cost, which --max-map-drop looks for; leave one of them out"
            )
        by_turns = {"sparse", "prune", "finetune"} & set(self.stages)
        if by_turns and not {"prune", "finetune"} <= by_turns:
            raise ConfigError(
                f"--stages {' '.join(self.stages)}: --max-map-drop cuts and fine-tunes by turns; add prune and "
                "finetune"
            )

    def with_rounds(self) -> SlimConfig:
        """Return the settings with what `max_map_drop` leaves open, the most rounds and the furthest target."""
        if self.max_map_drop is None:
            return self
        rounds = self.rounds if self.rounds > 1 else _MOST_ROUNDS
        return replace(self, rounds=rounds, target=self.target or f"ms={100 * STEP**rounds:.6g}%")

    @property
    def is_auto(self) -> bool:
        """Whether each sparse training chooses channels first; other kinds of sparsity have a strength."""
        return super().is_auto and self.sparsity == "bn"

    def _check_auto(self) -> None:
        """Leave the check to the sparse stage, whose weights may be those of a dense training."""

    def dense_training(self, weights: str, folder: Path) -> TrainConfig:
        """Return a plain training from `weights` into `folder`."""
        return TrainConfig(**{**self._values_of(TrainConfig), **_place(weights, folder), "epochs": self.dense_epochs})

    def probing(self, weights: str, folder: Path, *, img_size: tuple[int, ...]) -> TrainConfig:
        """Return a short plain training from `weights` into `folder`, which is validated once, at its end."""
        own = replace(self.dense_training(weights, folder), img_size=img_size, epochs=self.probe_epochs)
        return replace(own, notest=True, noplots=True)

    def sparse_training(self, weights: str, folder: Path, *, is_first: bool) -> SparsityConfig:
        """Return a sparsity training from `weights` into `folder`.

        Later than the first one it trains the network as it comes, so that teachers and students have its anchors.
        """
        own = {"cfg": self.cfg if is_first else "", "noautoanchor": self.noautoanchor or not is_first}
        values = {**self._values_of(SparsityConfig), **_place(weights, folder), **own}
        if not self.is_auto:  # the cut chooses channels, not the training
            values = {name: value for name, value in values.items() if name not in CHOICE}
            values["sr"] = None if self.sr == AUTO else self.sr
        else:
            values["limit"] = self._round_limit
        return SparsityConfig(**values)

    def pruning(self, weights: str, folder: Path, *, target: str, plan: str = "") -> PruneConfig:
        """Return a cut of `weights`, by `plan` if there is one, measured before and after, into `folder`."""
        return PruneConfig(
            weights=weights,
            **({"plan": plan} if plan else self._ranking(target)),
            latency_layers=self.latency_layers,
            data=self.data,
            img_size=self.test_size,
            batch_size=self.batch_size,
            device=self.device,
            workers=self.workers,
            cache_dir=self.cache_dir,
            noplots=self.noplots,
            project=str(folder.parent),
            name=folder.name,
            exist_ok=True,
        )

    def _ranking(self, target: str) -> dict[str, Any]:
        """Return the settings by which a cut ranks channels and stops."""
        is_timed = bool(self.latency_layers) or (bool(target) and parse_target(target).quantity == "ms")
        timing = ("runtime", "precision", "threads", "latency_table") if is_timed else ()
        names = ("percent", "shortcuts", "round", "round_direction", "min_channels", *timing)
        # Channels are ranked by what was drawn to zero.
        criterion = "kernel_l1" if self.sparsity == "kernel" else "bn_gamma"
        own = {"target": target, "criterion": criterion, "limit": self._round_limit}
        return {**own, **{name: getattr(self, name) for name in names}}

    @property
    def _round_limit(self) -> tuple[str, ...]:
        """Limits of layers in each round, which reach the given ones after the last."""
        return limits_per_round(self.limit, rounds=self.rounds)

    def finetuning(self, weights: str, folder: Path, *, teacher: str, plan: str = "") -> FinetuneConfig:
        """Return a fine-tuning of pruned `weights` into `folder`, with `teacher` where there is to be one.

        `plan` makes the weights of the teacher, in several cuts; by default that of the last cut is looked for.
        """
        own = {
            "cfg": "",
            "epochs": self.finetune_epochs,
            "teacher": teacher if self.distill else "",
            "distill": self.distill,
            "features": self.features,
            "plan": plan if self.distill else "",
            "scale_rate": self.scale_rate,
        }
        return FinetuneConfig(**{**self._values_of(TrainConfig), **_place(weights, folder), **own})

    def exporting(self, weights: str, folder: Path, *, beside: str = "") -> ExportConfig:
        """Return an export of `weights` to the runtime, verified and timed there beside others, into `folder`."""
        return ExportConfig(
            weights=weights,
            beside=beside,
            include=(self.runtime,),
            img_size=(self.test_size,),
            half=self.precision == "fp16",
            int8=self.precision == "int8",
            data=self.data,
            **self._files_in(folder),
        )

    def quantising(self, export: ExportConfig, folder: Path) -> QuantizeConfig:
        """Return the training with the rounding of the runtime, before an export, if that loses too much."""
        return QuantizeConfig(
            weights=export.weights,
            data=self.data,
            img_size=export.img_size,
            runtime=self.runtime,
            qat_epochs=self.qat_epochs,
            max_map_drop=self.max_map_drop,
            calib_images=export.calib_images,
            batch_size=self.batch_size,
            augment=self.augment,
            seed=self.seed,
            device=self.device,
            amp=self.amp,
            **self._files_in(folder),
        )

    def _files_in(self, folder: Path) -> dict[str, Any]:
        """Return how a stage that writes files for a runtime works, and where."""
        return {
            "threads": self.threads,
            "workers": self.workers,
            "cache_dir": self.cache_dir,
            "output": str(folder),
            "project": str(folder.parent),
            "name": folder.name,
            "exist_ok": True,
        }

    def _values_of(self, kind: type[TrainConfig]) -> dict[str, Any]:
        """Return the settings that a stage of this kind has as well."""
        return {item.name: getattr(self, item.name) for item in fields(kind)}


def _place(weights: str, folder: Path) -> dict[str, Any]:
    """Where a training stage starts and where it writes."""
    return {
        "weights": weights,
        "project": str(folder.parent),
        "name": folder.name,
        "exist_ok": True,  # a run killed before its first checkpoint has left the folder
        "resume": "",
    }
