"""Files given as weights or to resume from that cannot be used, through the real scripts."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from refusal import Place, make_place, refusal, run

from utils.storage.checkpoint import load_checkpoint, save_checkpoint

SCRIPTS = ["train", "val", "detect"]


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return make_place(tmp_path)


def refusal_of_weights(place: Place, script: str, path: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """What a script says about the file; it must leave everything as it was."""
    before = place.snapshot()
    line = refusal(script, [*place.arguments(script), "--weights", str(path)], capsys)
    assert place.snapshot() == before
    assert str(path) in line
    return line


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize(
    ("content", "finding", "remedy"),
    [
        (b"", "are empty", "download or copy the file again"),
        (b"<!DOCTYPE html><html><body>404</body></html>", "are a web page", "download the file itself"),
        (b"just some text", "are not a checkpoint", "give a .pt file"),
        (b"PK\x03\x04 and then nothing", "are truncated", "download or copy the file again"),
    ],
    ids=["empty", "page", "text", "cut"],
)
def test_file_that_is_no_checkpoint_is_named_for_what_it_is(
    place: Place, script: str, content: bytes, finding: str, remedy: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = place.root / "wrong.pt"
    path.write_bytes(content)
    line = refusal_of_weights(place, script, path, capsys)
    assert finding in line
    assert remedy in line


@pytest.mark.parametrize("script", SCRIPTS)
def test_truncated_checkpoint_is_refused(place: Place, script: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = place.root / "cut.pt"
    content = place.weights.read_bytes()
    path.write_bytes(content[: len(content) * 9 // 10])
    assert "are truncated" in refusal_of_weights(place, script, path, capsys)


@pytest.mark.parametrize("script", SCRIPTS)
def test_damaged_bytes_in_the_middle_are_refused(
    place: Place, script: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = place.root / "damaged.pt"
    content = bytearray(place.weights.read_bytes())
    start = content.index(b"data.pkl") + 40
    content[start : start + 200] = bytes(200)
    path.write_bytes(bytes(content))
    refusal_of_weights(place, script, path, capsys)


@pytest.mark.parametrize("script", SCRIPTS)
def test_missing_weights_are_named_and_nothing_is_downloaded(
    place: Place, script: str, capsys: pytest.CaptureFixture[str]
) -> None:
    line = refusal_of_weights(place, script, Path("yolov5s.pt"), capsys)
    assert "do not exist" in line
    assert "nothing is downloaded" in line


class Evil:
    """A pickle of it runs a command."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, ...]:
        return (open, (str(self.marker), "w"))


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("is_nested", [False, True])
def test_malicious_pickle_is_refused_by_name_and_does_not_run(
    place: Place, script: str, is_nested: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    path, marker = place.root / "evil.pt", place.root / "it-ran"
    evil = Evil(marker)
    torch.save({"model": evil, "epoch": 1} if is_nested else evil, path)
    line = refusal_of_weights(place, script, path, capsys)
    assert "io.open" in line or "builtins.open" in line or "_io.open" in line
    assert not marker.exists()


def test_malicious_plain_pickle_does_not_run(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    path, marker = place.root / "evil.pt", place.root / "it-ran"
    path.write_bytes(pickle.dumps(Evil(marker), protocol=2))
    assert "before 1.6" in refusal_of_weights(place, "detect", path, capsys)
    assert not marker.exists()


def test_weights_of_another_class_count_are_refused_by_val(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    place.data.write_text("train: images/train\nval: images/val\nnames: [a, b]\n")
    line = refusal("val", place.arguments("val"), capsys)
    assert f"{place.weights} has 3 classes but {place.data} has 2" in line
    assert "'Platelets'" in line
    assert line.rstrip().endswith("or measure with --single-cls of val.py")


def test_resume_of_a_missing_file_is_refused(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    line = refusal("train", ["--resume", str(place.root / "none/last.pt")], capsys)
    assert "none/last.pt do not exist; check the path" in line


def test_resume_without_any_run_is_refused(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    line = refusal("train", ["--resume", "--project", str(place.project)], capsys)
    assert f"no run in {place.project} has weights/last.pt; give the path of one" in line


def test_resume_of_a_finished_run_is_refused_and_says_how_to_go_on(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    run("train", place.arguments("train"))
    last = place.project / "exp/weights/last.pt"
    before = place.snapshot()
    line = refusal("train", ["--resume", str(last)], capsys)
    assert f"{last}: this run is complete" in line
    assert f"--weights {last}" in line
    assert place.snapshot() == before


@pytest.mark.parametrize("kind", ["no settings", "state dictionary", "settings of another version"])
def test_resume_from_what_is_no_training_checkpoint_is_refused(
    place: Place, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = place.root / "weights/last.pt"
    checkpoint = load_checkpoint(place.weights)
    if kind == "state dictionary":
        path.parent.mkdir()
        torch.save(checkpoint.weights, path)
    else:
        optimizer = {"state": {}, "param_groups": []} if kind == "settings of another version" else None
        save_checkpoint(replace(checkpoint, optimizer=optimizer, config={"gone": 1} if optimizer else {}), path)
    line = refusal("train", ["--resume", str(path)], capsys)
    assert str(path) in line
    assert ("unknown key 'gone'" in line) if kind.startswith("settings") else ("--weights" in line)


def test_resume_without_the_files_of_its_run_folder_is_refused(
    place: Place, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A last.pt that was copied somewhere else."""
    monkeypatch.setattr("engine.training.checkpointing.CheckpointHook.end", lambda self, trainer: None)
    run("train", place.arguments("train"))
    copy = place.root / "elsewhere/weights/last.pt"
    copy.parent.mkdir(parents=True)
    copy.write_bytes((place.project / "exp/weights/last.pt").read_bytes())
    line = refusal("train", ["--resume", str(copy)], capsys)
    assert "elsewhere/hyp.yaml does not exist" in line
