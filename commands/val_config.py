"""The settings of val.py."""

from __future__ import annotations

from dataclasses import dataclass

from tasks.settings import ValSettings


@dataclass(frozen=True, kw_only=True)
class ValConfig(ValSettings):
    """Measure a detector or a classifier on a data set."""

    device: str = ""  # cpu, or the number of a GPU; empty takes a GPU if there is one
    half: bool = False  # compute in 16 bits where the device can
    threads: int | None = None  # of the processor; all cores by default
    powersave: int = 0  # cores for ncnn: 0 all, 1 the small ones, 2 the big ones
    verbose: bool = False  # list every class, however many
    save_json: bool = False  # for v5.0 command lines; predictions.json is always written
    project: str = "runs/val"  # where run folders are made
    name: str = "exp"  # name of the run folder
    exist_ok: bool = False  # use the folder even if it exists
