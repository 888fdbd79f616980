"""Sizes, devices, memory and disks that do not suffice, through the real scripts."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from refusal import Place, make_place, refusal, run
from torch import Tensor

from models.detector import Detector
from utils.storage.checkpoint import load_checkpoint


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return make_place(tmp_path)


@pytest.mark.parametrize("script", ["train", "val", "detect"])
def test_image_size_is_rounded_up_to_the_stride_with_a_note(
    place: Place, script: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("WARNING"):
        run(script, [*place.arguments(script), "--img-size", "50"])
    assert "50 is not a multiple of the stride 16; using 64" in caplog.text
    assert (place.project / "exp/result.json").exists()


@pytest.mark.parametrize("script", ["train", "val", "detect"])
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_device_that_is_not_there_is_refused(place: Place, script: str, capsys: pytest.CaptureFixture[str]) -> None:
    line = refusal(script, [*place.arguments(script), "--device", "0"], capsys)
    assert line == "--device 0: this machine has 0 usable GPUs; use --device cpu"
    assert not place.project.exists()


@pytest.mark.parametrize(
    ("script", "remedy"),
    [
        ("train", "lower --batch-size (now 2), --img-size (now 64) or --workers (now 0)"),
        ("val", "lower --batch-size (now 2), --img-size (now 64) or --workers (now 0)"),
        ("detect", "lower --img-size (now 64), or in Python img_size or batch_size"),
    ],
)
def test_batch_too_large_for_memory_says_what_to_lower(
    place: Place, script: str, remedy: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def exhausted(self: Detector, images: Tensor) -> Any:
        return torch.empty(2**62, dtype=torch.uint8)  # 4 EiB, refused by every allocator

    monkeypatch.setattr(Detector, "forward", exhausted)
    line = refusal(script, place.arguments(script), capsys)
    assert line.startswith("out of memory (")
    assert line.endswith(remedy)


def test_validation_too_large_for_memory_says_what_to_lower(
    place: Place, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Training fits, the evaluation after it does not; the checkpoint from before is whole."""

    def exhausted(*_: Any, **__: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")

    monkeypatch.setattr("engine.evaluation.detection_scores.DetectionScorer.add", exhausted)
    line = refusal("train", place.arguments("train"), capsys)
    assert line.endswith("lower --batch-size (now 2), --img-size (now 64) or --workers (now 0)")
    assert load_checkpoint(place.project / "exp/weights/last.pt").epoch == -1


@pytest.mark.parametrize("script", ["train", "val", "detect"])
def test_file_in_the_way_of_the_run_folder_is_refused(
    place: Place, script: str, capsys: pytest.CaptureFixture[str]
) -> None:
    place.project.write_text("mine")
    line = refusal(script, place.arguments(script), capsys)
    assert f"cannot create the run folder {place.project}/exp" in line
    assert line.endswith("choose another --project")
    assert place.project.read_text() == "mine"


@pytest.mark.parametrize("script", ["train", "val", "detect"])
@pytest.mark.skipif(not Path("/proc/self").exists(), reason="no /proc, where nobody can make folders")
def test_run_folder_where_nothing_can_be_made_is_refused(
    place: Place, script: str, capsys: pytest.CaptureFixture[str]
) -> None:
    line = refusal(script, [*place.arguments(script), "--project", "/proc/runs"], capsys)
    assert line.startswith("cannot create the run folder /proc/runs/exp")


@pytest.mark.parametrize("script", ["train", "val", "detect"])
def test_full_disk_is_named_with_the_file(
    place: Place, script: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("utils.storage.files.os.fsync", full)
    line = refusal(script, place.arguments(script), capsys)
    assert line.startswith(f"cannot write {place.project}/exp/")
    assert "No space left on device; free space or choose another folder" in line


def fill_disk_after(writes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let that many checkpoints be written, then fail in the middle of one, as torch does on a full disk."""
    real, done = torch.save, []

    def save(content: Any, path: Any) -> None:
        if len(done) == writes:
            Path(path).write_bytes(b"PK half a file")
            raise RuntimeError("[enforce fail at inline_container.cc:858] . PytorchStreamWriter failed writing file")
        done.append(path)
        real(content, path)

    monkeypatch.setattr(torch, "save", save)


def test_disk_that_fills_while_saving_leaves_the_old_checkpoint(
    place: Place, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # last.pt before training, then best.pt and last.pt of the first epoch, then best.pt of the second fails.
    fill_disk_after(3, monkeypatch)
    line = refusal("train", [*place.arguments("train"), "--epochs", "3"], capsys)
    folder = place.project / "exp/weights"
    assert line.startswith(f"cannot write {folder}")
    assert sorted(path.name for path in folder.iterdir()) == ["best.pt", "last.pt"]
    assert load_checkpoint(folder / "last.pt").epoch in (0, 1)


class Killed(BaseException):
    """Stands for a kill: no handler of the product catches it."""


def test_kill_while_saving_leaves_the_old_checkpoint_and_the_run_resumes(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even when the half-written temporary file stays, which a real kill -9 does not remove."""
    real, done = torch.save, []

    def save(content: Any, path: Any) -> None:
        if len(done) == 2:  # last.pt of the first epoch
            Path(path).with_suffix(".half").write_bytes(b"PK half a file")
            raise Killed
        done.append(path)
        real(content, path)

    monkeypatch.setattr(torch, "save", save)
    with pytest.raises(Killed):
        run("train", place.arguments("train"))
    last = place.project / "exp/weights/last.pt"
    assert load_checkpoint(last).epoch == -1
    monkeypatch.setattr(torch, "save", real)
    run("train", ["--resume", str(last)])
    assert load_checkpoint(last).epoch == 0


def test_label_cache_that_cannot_be_written_is_only_a_warning(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    blocked = place.root / "blocked"
    blocked.write_text("")
    with caplog.at_level("WARNING"):
        run("train", [*place.arguments("train"), "--cache-dir", str(blocked / "cache")])
    assert "label index is not cached" in caplog.text
    assert (place.project / "exp/result.json").exists()


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--cfg", "none.yaml"], "none.yaml"),
        (["--label-smoothing", "3"], "--label-smoothing 3.0: expected 0 or more and less than 1"),
        (["--hyp", "none.yaml"], "hyper-parameter file none.yaml does not exist; check the path"),
        (["--freeze", "99"], "--freeze 99: the network has layers 0 to 9"),
        (["--amp", "fp16"], "--amp fp16 needs a GPU; use --amp bf16 or --amp off on a CPU"),
    ],
)
def test_setting_that_cannot_work_leaves_no_run_folder(
    place: Place, arguments: list[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert line in refusal("train", [*place.arguments("train"), *arguments], capsys)
    assert not place.project.exists()
