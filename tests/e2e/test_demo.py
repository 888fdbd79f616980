"""`make demo` in small: every stage runs, one table comes out, the ncnn folder is there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny import TINY_CFG, tiny_data

from demo import DemoConfig, demo

for package in ("ncnn", "pnnx"):
    pytest.importorskip(package, reason=f"the {package} package is not installed")


def test_demo_goes_from_pictures_to_a_verified_ncnn_folder(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    data = str(tiny_data(tmp_path / "data", images=2))
    config = DemoConfig(
        cfg=TINY_CFG, data=data, epochs=1, sparse_epochs=1, finetune_epochs=1, project=str(tmp_path / "runs")
    )
    demo(config)  # mAP of an untrained network is noise, and so is whether it agrees on two pictures
    folder = tmp_path / "runs/exp"
    report = json.loads((folder / "ncnn/small/report/result.json").read_text())["reports"][0]
    assert max(head["largest"] for head in report["heads"]) < 1e-4
    result = json.loads((folder / "result.json").read_text())
    stages = [stage["stage"] for stage in result["stages"]]
    assert stages == ["dense", "round1/sparse", "round1/prune", "round1/finetune"]
    assert result["stages"][-1]["macs"] < 0.55 * result["stages"][0]["macs"]
    assert all(stage["ncnn_ms"] > 0 for stage in result["stages"])
    assert Path(result["ncnn"], "README.md").is_file()
    lines = caplog.text.splitlines()
    assert any(line.lstrip().startswith("round1/finetune") for line in lines)
