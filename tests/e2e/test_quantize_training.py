"""quantize.py --qat-epochs: trained with simulated rounding, killed and resumed, and what it refuses."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from interruption import KillAfter, Killed
from mask_oracle import lively
from refusal import NAMES, Place, make_place, refusal, run
from tiny import TINY_CFG

from commands.export_config import ExportConfig
from commands.quantize_config import QuantizeConfig
from commands.quantize_training import QatRun
from commands.slim_config import SlimConfig
from commands.slim_stages import _export
from commands.train import run_training
from deploy.calibration import as_input
from deploy.formats import load_runtime
from deploy.integer.runtime import NETWORK_NAME
from models.detector import Detector, build_model
from models.load import load_model
from models.spec import ModelSpec
from quantization.network import QuantizedNetwork
from quantization.storage.binary import load_program
from tasks.detection import QuantizedHeads
from utils.errors import ConfigError
from utils.storage.checkpoint import Checkpoint, load_checkpoint, save_checkpoint

ARTEFACT = "tiny_w4a6_integer_model"


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return make_place(tmp_path)


def arguments(place: Place, *more: str) -> list[str]:
    common = ["--weights", str(place.weights), "--data", str(place.data), "--img", "64", "--calib-images", "2"]
    bits = ["--weight-bits", "4", "--activation-bits", "6", "--qat-epochs", "2", "--batch-size", "2"]
    rest = ["--workers", "0", "--device", "cpu", "--cache-dir", str(place.root / "cache")]
    return [*common, *bits, *rest, "--project", str(place.project), *more]


def written(place: Place) -> bytes:
    return (place.root / ARTEFACT / NETWORK_NAME).read_bytes()


def integers(place: Place) -> dict[str, Any]:
    program = load_program(place.root / ARTEFACT / NETWORK_NAME)
    return {step.name: step.arrays["weight"] for step in program.operations if step.weight_bits}


def test_training_changes_the_integers_and_is_measured(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    run("quantize", arguments(place, "--qat-epochs", "0"))
    before = integers(place)
    run("quantize", [*arguments(place, "--lr0", "0.05", "--fake", "--features", "1"), "--name", "trained"])
    after = integers(place)
    assert any((before[name] != after[name]).any() for name in before)
    result = json.loads((place.project / "trained/result.json").read_text())
    assert result["config"]["qat_epochs"] == 2
    assert {"floats", "fake", "integer"} <= result["measured"].keys()
    state = load_checkpoint(place.project / "trained/qat/weights/best.pt").weights
    # Whole, not in 16 bits: other integers would come out.
    assert all(tensor.dtype is not torch.float16 for tensor in state.values())
    assert any(name.endswith("scales.values") for name in state)
    assert "features" in caplog.text


def kill_in(epoch: int) -> Callable[..., Any]:
    def killed(config: Any, *, hooks: Callable[..., Sequence[Any]], task: Any) -> Any:
        return run_training(config, hooks=lambda *given: [*hooks(*given), KillAfter(epoch)], task=task)

    return killed


@pytest.mark.parametrize("epoch", [0, 1])
def test_a_killed_training_goes_on_to_the_same_file(
    place: Place, monkeypatch: pytest.MonkeyPatch, epoch: int
) -> None:
    run("quantize", arguments(place))
    wanted = written(place)
    with monkeypatch.context() as patched:
        patched.setattr("commands.quantize_training.run_training", kill_in(epoch))
        with pytest.raises(Killed):
            run("quantize", arguments(place))
    shutil.rmtree(place.root / ARTEFACT)
    run("quantize", ["--resume", str(place.project / "exp2")])
    assert written(place) == wanted
    first, second = (json.loads((place.project / f"{name}/result.json").read_text()) for name in ("exp", "exp2"))
    assert first["measured"]["integer"] == second["measured"]["integer"]


def test_bits_within_a_budget_are_chosen_once(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    mixed = arguments(place, "--budget", "10K", "--budget-bits", "4", "8")
    artefact = place.root / "tiny_mixed_a6_integer_model" / NETWORK_NAME
    run("quantize", mixed)
    wanted = artefact.read_bytes()
    with monkeypatch.context() as patched:
        patched.setattr("commands.quantize_training.run_training", kill_in(0))
        with pytest.raises(Killed):
            run("quantize", mixed)
    monkeypatch.setattr("commands.quantize.sensitivities", partial(_raise, AssertionError("measured again")))
    run("quantize", ["--resume", str(place.project / "exp2")])
    assert artefact.read_bytes() == wanted
    bits = json.loads((place.project / "exp2/result.json").read_text())["weight_bits"]
    assert set(bits.values()) == {4, 8}


def test_a_run_killed_before_its_file_is_written_trains_no_more(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr("commands.quantize._written", partial(_raise, Killed()))
        with pytest.raises(Killed):
            run("quantize", arguments(place))
    monkeypatch.setattr("commands.quantize_training.run_training", partial(_raise, AssertionError("trained again")))
    run("quantize", ["--resume", "--project", str(place.project)])
    assert (place.root / ARTEFACT / NETWORK_NAME).exists()


def _raise(error: BaseException, *given: Any, **named: Any) -> None:
    raise error


def test_ctrl_c_says_how_to_go_on(
    place: Place, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("commands.quantize_training.run_training", partial(_raise, KeyboardInterrupt()))
    with pytest.raises(SystemExit) as stopped:
        run("quantize", arguments(place))
    assert stopped.value.code == 130
    assert f"python quantize.py --resume {place.project / 'exp'} continues this run" in capsys.readouterr().err


def test_another_run_is_not_gone_on_with_unasked(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    run("quantize", arguments(place, "--qat-epochs", "1"))
    before = place.snapshot()
    again = arguments(place, "--qat-epochs", "2", "--exist-ok")
    assert f"--resume {place.project / 'exp'} continues with it" in refusal("quantize", again, capsys)
    assert place.snapshot() == before


def test_zeros_of_the_checkpoint_stay_zero(place: Place) -> None:
    checkpoint = load_checkpoint(place.weights)
    name = next(name for name, weight in checkpoint.weights.items() if weight.ndim == 4)
    checkpoint.weights[name][:, 0] = 0
    save_checkpoint(checkpoint, place.weights)
    run("quantize", arguments(place, "--lr0", "0.05"))
    found = integers(place)[name.removesuffix(".weight")]
    assert (found[:, 0] == 0).all()
    assert (found[:, 1:] != 0).any()


def test_another_teacher_is_followed_in_its_answers_alone(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    run("quantize", arguments(place, "--teacher", str(place.weights), "--no-learn-scales"))
    assert "distillation" in caplog.text
    assert "features" not in caplog.text.split("distillation: teacher")[1].splitlines()[0]


def test_what_cannot_be_trained_is_refused_before_anything_is_written(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = ModelSpec.from_yaml(TINY_CFG, num_classes=2)
    other = place.root / "other.pt"
    save_checkpoint(Checkpoint(spec=spec.to_dict(), names=NAMES[:2], weights=build_model(spec).state_dict()), other)
    deep, deeper = ModelSpec.from_yaml("models/yolov5n.yaml", num_classes=3), place.root / "deeper.pt"
    save_checkpoint(Checkpoint(spec=deep.to_dict(), names=NAMES, weights=build_model(deep).state_dict()), deeper)
    before = place.snapshot()
    assert "--teacher" in refusal("quantize", arguments(place, "--teacher", str(other)), capsys)
    assert "--teacher" in refusal("quantize", arguments(place, "--teacher", str(deeper)), capsys)
    assert "no --data given" in refusal("quantize", arguments(place, "--data", ""), capsys)
    unsplit = place.root / "unsplit.yaml"
    unsplit.write_text(place.data.read_text().replace("train: images/train\n", ""))
    assert "train" in refusal("quantize", arguments(place, "--data", str(unsplit)), capsys)
    unsplit.unlink()
    assert "no run in" in refusal("quantize", ["--resume", "--project", str(place.project)], capsys)
    assert "no folder of a run" in refusal("quantize", ["--resume", str(place.root)], capsys)
    assert place.snapshot() == before
    run("quantize", arguments(place, "--qat-epochs", "0"))
    assert "nothing is trained" in refusal("quantize", ["--resume", str(place.project / "exp")], capsys)


@pytest.mark.parametrize("wrong", [{"lr0": 0.0}, {"distill": -1.0}, {"qat_epochs": -1}, {"batch_size": 0}])
def test_settings_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        QuantizeConfig(**{"weights": "a.pt", "data": "b.yaml", "qat_epochs": 1, **wrong})


def lively_detector() -> Detector:
    """The tiny network with statistics as after training, so that its answers differ from place to place."""
    torch.manual_seed(0)
    return lively(build_model(ModelSpec.from_yaml(TINY_CFG, num_classes=3))).float()


def for_runtime(place: Place, runtime: str, *more: str) -> list[str]:
    common = ["--weights", str(place.weights), "--data", str(place.data), "--img", "64", "--calib-images", "2"]
    rest = ["--workers", "0", "--device", "cpu", "--cache-dir", str(place.root / "cache"), "--batch-size", "2"]
    return [*common, *rest, "--project", str(place.project), "--runtime", runtime, *more]


@pytest.mark.parametrize(
    ("runtime", "artefact"),
    [("ncnn", "tiny_w8a8_ncnn_model"), ("onnx", "tiny_w8a8.onnx"), ("openvino", "tiny_w8a8_openvino_model")],
)
def test_file_for_a_runtime_computes_what_was_trained(
    place: Place, runtime: str, artefact: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lively = lively_detector()
    save_checkpoint(Checkpoint(spec=lively.spec.to_dict(), names=NAMES, weights=lively.state_dict()), place.weights)
    trained: list[QuantizedNetwork] = []
    run_qat = QatRun.run
    monkeypatch.setattr(QatRun, "run", lambda self, folder: trained.append(run_qat(self, folder)) or trained[0])
    run("quantize", for_runtime(place, runtime, "--qat-epochs", "2", "--lr0", "0.02"))
    images = as_input(place.root / "images/val/c.jpg", (64, 64))
    model = load_model(place.weights).model
    loaded = load_runtime(place.root / artefact, device=torch.device("cpu"))
    assert loaded.precision == "int8"
    with torch.no_grad():
        found, wanted, before = (
            torch.cat([head.flatten() for head in heads])
            for heads in (loaded(images), QuantizedHeads(trained[0], model)(images), model(images))
        )
    # Values halfway between two integers are rounded the other way; training has changed far more.
    assert (found - wanted).norm() < 0.2 * (before - wanted).norm()
    assert (found - wanted).norm() < 0.05 * wanted.norm()


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ((), "--qat-epochs"),
        (("--qat-epochs", "1", "--weight-bits", "4"), "8 bits"),
        (("--qat-epochs", "1", "--budget", "1K"), "8 bits"),
    ],
)
def test_what_a_runtime_lacks_is_refused(
    place: Place, more: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert said in refusal("quantize", for_runtime(place, "ncnn", *more), capsys)
    assert "integer, ncnn, onnx" in refusal("quantize", for_runtime(place, "torchscript", *more), capsys)


def test_nothing_is_trained_where_rounding_loses_little(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    run("quantize", for_runtime(place, "onnx", "--qat-epochs", "1", "--max-map-drop", "0.9"))
    assert "nothing is trained" in caplog.text
    assert not (place.project / "exp/qat").exists()
    assert load_runtime(place.root / "tiny_w8a8.onnx", device=torch.device("cpu")).precision == "int8"


def test_export_takes_what_was_trained(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    lively = lively_detector()
    save_checkpoint(Checkpoint(spec=lively.spec.to_dict(), names=NAMES, weights=lively.state_dict()), place.weights)
    run("quantize", for_runtime(place, "onnx", "--qat-epochs", "1", "--lr0", "0.02"))
    common = ["--weights", str(place.weights), "--img", "64", "--data", str(place.data), "--workers", "0"]
    common += ["--project", str(place.root / "exports"), "--cache-dir", str(place.root / "cache"), "--int8"]
    trained = [*common, "--int8-trained", str(place.project / "exp")]
    with suppress(SystemExit):  # an untrained network finds no boxes to agree on
        run("export", [*trained, "--include", "onnx"])
    images = as_input(place.root / "images/val/c.jpg", (64, 64))
    files = (place.root / "tiny_w8a8.onnx", place.root / "tiny_int8.onnx")
    one, other = (load_runtime(path, device=torch.device("cpu"))(images) for path in files)
    for head, same in zip(one, other, strict=True):
        assert torch.equal(head, same)
    assert "trained for onnx, not for ncnn" in refusal("export", [*trained, "--include", "ncnn"], capsys)
    no_run = [*common, "--int8-trained", str(place.root)]
    assert "no run of quantize.py" in refusal("export", [*no_run, "--include", "onnx"], capsys)
    spec = ModelSpec.from_yaml("models/yolov5n.yaml", num_classes=3)
    save_checkpoint(
        Checkpoint(spec=spec.to_dict(), names=NAMES, weights=build_model(spec).state_dict()), place.weights
    )
    assert "exp quantises another network; give the --weights of that run" in refusal(
        "export", [*trained, "--include", "onnx"], capsys
    )


def test_run_of_other_weights_is_neither_exported_nor_resumed(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    run("quantize", for_runtime(place, "onnx", "--qat-epochs", "1"))
    lively = lively_detector()
    save_checkpoint(Checkpoint(spec=lively.spec.to_dict(), names=NAMES, weights=lively.state_dict()), place.weights)
    before = place.snapshot()
    line = ["--weights", str(place.weights), "--img", "64", "--data", str(place.data), "--workers", "0", "--int8"]
    line += ["--project", str(place.root / "exports"), "--cache-dir", str(place.root / "cache"), "--include", "onnx"]
    message = refusal("export", [*line, "--int8-trained", str(place.project / "exp")], capsys)
    assert "exp quantises other weights; give the --weights of that run, or run quantize.py for these" in message
    assert "exp quantises other weights" in refusal("quantize", ["--resume", str(place.project / "exp")], capsys)
    assert place.snapshot() == before


@pytest.mark.parametrize(("drop", "is_trained"), [(0.9, False), (0.0, True)])
def test_slim_trains_int8_where_it_loses_more_than_allowed(
    place: Place, drop: float, is_trained: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = SlimConfig(
        weights=str(place.weights),
        data=str(place.data),
        img_size=(64,),
        batch_size=2,
        precision="int8",
        max_map_drop=drop,
        qat_epochs=1,
        workers=0,
        device="cpu",
        cache_dir=str(place.root / "cache"),
        project=str(place.project),
    )
    exported: list[ExportConfig] = []
    monkeypatch.setattr("commands.slim_stages.run_export", exported.append)
    monkeypatch.setattr("commands.quantize._Subject.score", lambda *given, **named: -0.1)  # a loss of .1 at least
    folder = place.project / "line"
    _export(config, folder, config.exporting(str(place.weights), folder / "export"))
    assert exported[0].int8_trained == (str(folder / "quantize") if is_trained else "")
    assert (folder / "quantize/qat/result.json").exists() == is_trained
    _export(config, folder, config.exporting(str(place.weights), folder / "export"))  # goes on where it was
    assert exported[1] == exported[0]
