"""Two gloo processes against one at the same global batch."""

from __future__ import annotations

import os
import socket
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from tiny import tiny_config
from tiny_classes import classifier_config, small_pictures
from torch import Tensor, nn

from commands.train import run_training
from engine.training.distributed import Process, mean_over_ranks, process_group, this_process
from engine.training.hooks import Hook, Step
from engine.training.sync_bn import CpuSyncBatchNorm2d, plain_batch_norms_, synchronise_batch_norms_
from engine.training.trainer import Trainer
from tasks.choose import DETECTION
from tasks.classification import Classification
from utils.config.hyp import Hyp
from utils.errors import ConfigError
from utils.storage.checkpoint import load_checkpoint

STEPS = 20


class LossCurve(Hook):
    """The loss of every step, mean over processes."""

    def __init__(self) -> None:
        self.losses: list[float] = []

    def after_loss(self, trainer: Trainer, step: Step) -> Tensor:
        self.losses.append(float(mean_over_ranks(step.loss.detach())))
        return step.loss


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def join(rank: int, port: int) -> None:
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1")
    os.environ["MASTER_PORT"] = str(port)
    torch.set_num_threads(1)


def train_curve(folder: Path, name: str) -> list[float]:
    """Losses of 20 steps of global batch 4 without augmentation."""
    curve = LossCurve()
    hyp = folder / "plain.yaml"
    if not hyp.exists():
        hyp.write_text(
            "\n".join(f"{k}: 0" for k in ("mosaic", "hsv_h", "hsv_s", "hsv_v", "translate", "scale", "fliplr"))
        )
    config = tiny_config(
        folder, name=name, epochs=10, sync_bn=True, amp="off", hyp=str(hyp), notest=True, nosave=True
    )
    run_training(config, hooks=lambda *_: [curve])
    return curve.losses


def train_in_process(rank: int, port: int, folder: Path) -> None:
    join(rank, port)
    losses = train_curve(folder, "two")
    torch.save(losses, folder / f"rank{rank}.pt")


def test_two_processes_follow_the_loss_curve_of_one(tmp_path: Path) -> None:
    single = train_curve(tmp_path, "one")
    mp.spawn(train_in_process, args=(free_port(), tmp_path), nprocs=2)  # type: ignore[no-untyped-call]
    double = torch.load(tmp_path / "rank0.pt", weights_only=True)
    assert len(single) == STEPS
    assert double == pytest.approx(single, rel=1e-4)


def compare_batch_norm(rank: int, port: int) -> None:
    join(rank, port)
    torch.manual_seed(0)
    images, weights = torch.randn(4, 3, 5, 5), torch.randn(4, 3, 5, 5)
    whole, part = nn.BatchNorm2d(3), nn.Sequential(nn.BatchNorm2d(3))
    reference = images.clone().requires_grad_()
    (whole(reference) * weights).sum().backward()
    mine = slice(2 * rank, 2 * rank + 2)
    own = images[mine].clone().requires_grad_()
    with process_group(this_process(), torch.device("cpu")):
        synchronise_batch_norms_(part, torch.device("cpu"))
        output = part(own)
        (output * weights[mine]).sum().backward()
    torch.testing.assert_close(output, whole(images)[mine], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(own.grad, reference.grad[mine], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(part[0].running_mean, torch.zeros(3).lerp(images.mean((0, 2, 3)), 0.1))
    torch.testing.assert_close(part[0].running_var, torch.ones(3).lerp(images.transpose(0, 1).flatten(1).var(1), 0.1))


def test_batch_norm_over_processes_equals_that_of_the_whole_batch() -> None:
    mp.spawn(compare_batch_norm, args=(free_port(),), nprocs=2)  # type: ignore[no-untyped-call]
    model = nn.Sequential(nn.BatchNorm2d(2))
    synchronise_batch_norms_(model, torch.device("cpu"))
    assert isinstance(model[0], CpuSyncBatchNorm2d)
    plain_batch_norms_(model)
    assert type(model[0]) is nn.BatchNorm2d


def test_batch_that_processes_cannot_share_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    two, cpu, hyp = Process(world_size=2), torch.device("cpu"), Hyp()
    config = tiny_config(tmp_path, batch_size=3)
    data = DETECTION.read_data(config)
    network = DETECTION.make_network(config, data, hyp=hyp)
    with pytest.raises(ConfigError, match="2 processes"):
        DETECTION.train_loader(config, network, data, hyp=hyp, device=cpu, process=two)
    task, config = Classification(pictures=small_pictures()), classifier_config(tmp_path, batch_size=3)
    data = task.read_data(config)
    network = task.make_network(config, data, hyp=hyp)
    with pytest.raises(ConfigError, match="--batch-size 3 cannot be split by 2 processes; use a multiple"):
        task.train_loader(config, network, data, hyp=hyp, device=cpu, process=two)
    monkeypatch.setattr("commands.train.this_process", lambda: two)
    monkeypatch.setattr("commands.train.process_group", lambda *_: nullcontext())
    with pytest.raises(ConfigError, match="--batch-size 3 cannot be split by 2 processes"):
        run_training(config, task=task)
    assert not (tmp_path / "runs").exists(), "a mistake in the settings leaves no run folder"


def train_classifier(folder: Path, name: str) -> None:
    """Nine steps of global batch 16; LeNet5 has no batch norms, which would see the images of one process."""
    config = classifier_config(folder, name=name, lr0=0.02, momentum=0.5)
    run_training(config, task=Classification(pictures=small_pictures()))


def train_classifier_in_process(rank: int, port: int, folder: Path) -> None:
    join(rank, port)
    train_classifier(folder, "two")


def test_two_processes_give_a_classifier_the_weights_of_one(tmp_path: Path) -> None:
    train_classifier(tmp_path, "one")
    mp.spawn(train_classifier_in_process, args=(free_port(), tmp_path), nprocs=2)  # type: ignore[no-untyped-call]
    one, two = (load_checkpoint(tmp_path / "runs" / name / "weights/last.pt") for name in ("one", "two"))
    assert one.epoch == two.epoch == 2
    assert one.metrics["accuracy"] == two.metrics["accuracy"]
    for name, value in one.weights.items():
        torch.testing.assert_close(two.weights[name], value, atol=1e-5, rtol=1e-4)
    assert [path.name for path in (tmp_path / "runs").iterdir()].count("two2") == 0
