"""benchmarks/frontier.py: the envelope by hand, table and picture of invented points, and tiny rows end to end."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from latency_tables import invented_table
from PIL import Image
from tiny import ROOT, TINY_CFG, label_index

from benchmarks import pruning_speed, report
from benchmarks.frontier import FrontierConfig, body_of, measure
from benchmarks.frontier_curve import Point, best_at, compare, envelope, seed_deviation
from benchmarks.frontier_measuring import speeds_of
from benchmarks.frontier_picture import plot_frontier
from benchmarks.frontier_rows import Recipe, Row, rows_of, slim_preset
from benchmarks.scores import boxes_of
from commands import prune_latency
from deploy.latency.networks import Subject
from models.detector import build_model
from models.spec import ModelSpec
from pruning.channels.graph import ChannelGraph
from pruning.selection.latency import LatencyTable
from utils.errors import ConfigError
from utils.metrics.bootstrap import map_of_draws
from utils.storage.checkpoint import Checkpoint, save_checkpoint
from utils.storage.files import write_json


def point(ms: float, *scores: float, line: str = "dense s", precision: str = "fp32", **values: Any) -> Point:
    """A network whose draws are its score, a little less, and a little more."""
    drawn = np.mean(scores) + np.array([-0.01, 0.0, 0.01])
    name = f"{line}, {ms:g} ms"
    own = {"line": line, "name": name, "precision": precision, "ms": ms, "scores": scores, "drawn": drawn}
    return Point(**{**own, **values})


def places(points: Sequence[Point]) -> list[float]:
    return [own.ms for own in points]


def test_envelope_is_the_hull_over_log_ms_up_to_the_best_network() -> None:
    # At 10 ms the line from 1 to 100 ms is at .4: a network at .35 lies below it, one at .45 above.
    fast, slow = point(1, 0.2), point(100, 0.6)
    assert places(envelope([slow, point(10, 0.35), fast])) == [1, 100]
    assert places(envelope([slow, point(10, 0.45), fast])) == [1, 10, 100]
    # Slower and no better, or as fast and worse, is no alternative.
    assert places(envelope([fast, slow, point(200, 0.6), point(1, 0.1), point(300, 0.5)])) == [1, 100]
    assert envelope([]) == []


def test_alternative_is_linear_in_log_ms_between_two_networks() -> None:
    fast, slow = point(1, 0.2), point(100, 0.6)
    assert [(own.ms, weight) for own, weight in best_at([fast, slow], 10)] == [
        (1, pytest.approx(0.5)),
        (100, pytest.approx(0.5)),
    ]
    at_2 = best_at([fast, slow], 2)
    expected = 0.2 + 0.4 * math.log(2) / math.log(100)
    assert sum(weight * own.score for own, weight in at_2) == pytest.approx(expected)
    assert best_at([fast, slow], 1) == [(fast, 1.0), (slow, 0.0)]
    assert best_at([fast, slow], 100) == best_at([fast, slow], 500) == [(slow, 1.0)]
    assert best_at([fast, slow], 0.99) == best_at([], 1) == []


def test_comparison_takes_the_same_draws_and_the_seeds_of_both_sides() -> None:
    others = [point(1, 0.2, 0.2), point(100, 0.6)]
    ours = point(10, 0.5, 0.52, line="ours")
    found = compare(ours, [*others, ours], deviation=0.01)
    assert found is not None
    assert (found.best, found.difference) == (pytest.approx(0.4), pytest.approx(0.11))
    # Draws go up and down together here, so their difference does not move.
    assert found.interval == (pytest.approx(0.11), pytest.approx(0.11))
    assert found.error == pytest.approx(0.01 * math.sqrt(1 / 2 + 0.25 / 2 + 0.25 / 1))
    unpaired = compare(replace(ours, drawn=ours.drawn[::-1]), others, deviation=None)
    assert unpaired is not None
    assert unpaired.error is None
    assert unpaired.interval[0] < 0.095 < 0.125 < unpaired.interval[1]
    assert compare(replace(ours, ms=0.5), others, deviation=0.01) is None


def test_int8_is_compared_with_both_precisions_and_fp32_with_its_own() -> None:
    others = [point(10, 0.4), point(5, 0.5, precision="int8")]
    at_10 = {
        name: compare(point(10, 0.6, line="ours", precision=name), others, deviation=None)
        for name in ("fp32", "int8")
    }
    assert {name: found and found.best for name, found in at_10.items()} == {"fp32": 0.4, "int8": 0.5}


def test_deviation_is_pooled_over_rows_with_several_seeds() -> None:
    assert seed_deviation([point(1, 0.5), point(2, 0.4)]) is None
    # Variances .0002 (one degree of freedom) and .0004 (two).
    found = seed_deviation([point(1, 0.4, 0.42), point(2, 0.3, 0.32, 0.34), point(3, 0.9)])
    assert found == pytest.approx(math.sqrt((0.0002 + 2 * 0.0004) / 3))


def test_table_says_what_could_be_taken_instead_and_certainty_stands_first() -> None:
    dense = point(10, 0.6, 0.62)
    points = [
        dense,
        point(1, 0.4, precision="int8", passed=False),
        point(5, 0.63, line="ours, from s"),
        point(20, 0.63, line="ours, from s"),
        point(2, 0.5, line="ours, from s", precision="int8"),
    ]
    lines = body_of(points, reference=dense).splitlines()
    assert lines[0] == "- Deviation between seeds: 0.0141 (pooled over 1 rows)"
    assert "an mAP is ± 0.0095" in lines[1]
    assert "on the same images, ± 0.0000" in lines[1]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")]
    assert [row[:4] for row in rows[1:]] == [
        ["ours, from s, 20 ms", "fp32", "20.00", "0.50"],
        ["dense s, 10 ms", "fp32", "10.00", "1.00"],
        ["ours, from s, 5 ms", "fp32", "5.00", "2.00"],
        ["ours, from s, 2 ms", "int8", "2.00", "5.00"],
        ["dense s, 1 ms", "int8", "1.00", "10.00"],
    ]
    assert rows[1][7:10] == ["0.6100", "+0.0200", "+0.0200 to +0.0200"]
    assert rows[3][7:] == ["none as fast", "-", "-", "-", "verified"]
    assert rows[4][7:9] == [f"{0.4 + 0.21 * math.log10(2):.4f}", f"{0.1 - 0.21 * math.log10(2):+.4f}"]
    assert rows[5][7:] == ["", "", "", "", "differs from the network"]
    alone = body_of([point(5, 0.63)], reference=None)
    assert "not known, one seed each" in alone
    assert "| 5.00 | - | 0.6300 | 1 | - |" in alone


def test_picture_has_a_panel_for_each_precision(tmp_path: Path) -> None:
    points = [point(ms, 0.5 + ms / 100, 0.52, line=line) for line in ("dense s", "ours, from s") for ms in (2.0, 8.0)]
    plot_frontier(points, tmp_path / "one.png", title="cells")
    plot_frontier([*points, point(3, 0.5, precision="int8")], tmp_path / "two.png", title="cells")
    plot_frontier([point(3, 0.5, line="ours")], tmp_path / "ours.png", title="cells")
    one, two, ours = (
        np.asarray(Image.open(tmp_path / f"{name}.png").convert("RGB")) for name in ("one", "two", "ours")
    )
    assert two.shape[1] > 1.5 * one.shape[1]
    assert len(np.unique(one.reshape(-1, 3), axis=0)) > 50
    assert one.shape[0] == two.shape[0] == ours.shape[0]


def test_boxes_are_found_by_the_ids_of_the_data_set() -> None:
    box = [[0, 0.5, 0.5, 0.4, 0.4]]
    index = label_index(
        [box, box], shapes_hw=[(100, 100)] * 2, names=["a", "b"], image_ids=[7, 3], category_ids=[5, 2]
    )
    # Image, left, top, width, height, score, category.
    rows = np.array([[3, 30, 30, 40, 40, 0.9, 5], [7, 1, 2, 10, 20, 0.8, 2], [3, 0, 0, 5, 5, 0.7, 2]])
    scores = SimpleNamespace(rows=rows, sources={7: (7, "0.jpg"), 3: (3, "1.jpg")}, category_ids={5: 5, 2: 2})
    boxes = boxes_of(scores, index)
    assert boxes.found[0].tolist() == [[1, 2, 11, 22, 0.8, 1]]
    assert boxes.found[1].tolist() == [[30, 30, 70, 70, 0.9, 0], [0, 0, 5, 5, 0.7, 1]]
    # The first image lacks its box of class a: of its draws alone nothing is found, of the other's all.
    assert map_of_draws(boxes, np.array([[2, 0], [0, 2]])) == pytest.approx([0.0, 1.0])


def recipe(folder: Path, **values: Any) -> Recipe:
    own = {"weights": {"s": "s_coco.pt", "n": "n_coco.pt"}, "data": "few.yaml", "epochs": 100, "size": 320}
    speeds = {("s", 320): 1.0, ("n", 320): 3.1, ("n", 384): 2.2, ("n", 416): 1.8}
    more = {"folder": folder, "peer_reg": 1e-3, "speeds": speeds, "higher_sizes": (384,), "settings": {}}
    return Recipe(**{**own, **more, **values})


def test_rows_are_those_that_need_a_cut(tmp_path: Path) -> None:
    names = [row.name for row in rows_of(recipe(tmp_path), sizes=(320, 192), speedups=(3, 6))]
    assert names == [
        *("dense_s_320", "dense_s_192", "dense_n_320", "dense_n_192"),
        *("torch-pruning_s_x3", "torch-pruning_s_x6", "torch-pruning_n_x6"),
        *("ours_s_x3", "ours_s_x6", "ours_n_x6", "trained_s_x3", "trained_s_x6"),
        *("higher_n_384_x3", "higher_n_384_x6"),
    ]
    assert Row(way="trained", network="s", size=320, speedup=3).label == "ours, from a trained dense s, speedup=3"


def test_smaller_networks_are_cut_from_each_higher_size_that_is_too_slow_as_it_is(tmp_path: Path) -> None:
    rows = rows_of(recipe(tmp_path, higher_sizes=(384, 416)), sizes=(320,), speedups=(2, 3))
    higher = [row for row in rows if row.way == "higher"]
    assert [row.name for row in higher] == ["higher_n_384_x3", "higher_n_416_x2", "higher_n_416_x3"]
    assert higher[0].label == "ours, from n at 384 px, speedup=3"
    assert [row.line for row in higher] == ["ours, from n at 384 px", *["ours, from n at 416 px"] * 2]
    assert point(2, 0.5, line=higher[0].line).is_ours
    alone = recipe(tmp_path, weights={"s": "s_coco.pt"})
    assert not [row for row in rows_of(alone, sizes=(320,), speedups=(3,)) if row.way == "higher"]


def test_epochs_keep_the_shares_of_the_preset_and_their_sum(tmp_path: Path) -> None:
    preset = slim_preset()
    assert (preset["dense_epochs"], preset["epochs"], preset["finetune_epochs"]) == (40, 5, 55)
    for epochs, thirds, halves in (
        (100, [40, 5, 55], [8, 92]),
        (60, [24, 3, 33], [5, 55]),
        (3, [1, 1, 1], [1, 2]),
    ):
        own = recipe(tmp_path, epochs=epochs)
        assert own.split("dense", "sparse", "finetune") == thirds
        assert own.split("sparse", "finetune") == halves


def test_bad_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match="give one file of each network"):
        FrontierConfig(weights=("a/yolov5s_coco.pt", "b/yolov5s_other.pt"))
    with pytest.raises(ConfigError, match="--epochs 2"):
        FrontierConfig(weights=("s.pt",), epochs=2)
    with pytest.raises(ConfigError, match="--seeds: give at least one"):
        FrontierConfig(weights=("s.pt",), seeds=())
    with pytest.raises(ConfigError, match="--speedups above 1"):
        FrontierConfig(weights=("s.pt",), speedups=(1,))
    with pytest.raises(ConfigError, match=r"--higher-sizes 320: expected more pixels than the largest .*, 320"):
        FrontierConfig(weights=("s.pt",), higher_sizes=(384, 320))


@dataclass(frozen=True)
class Place:
    """Weights of two tiny networks that know five other classes, and a few pictures of each split."""

    root: Path

    def config(self, **values: Any) -> FrontierConfig:
        """Rows of 3 epochs at 64 px, and their names."""
        own = {
            "weights": (str(self.root / "wide_coco.pt"), str(self.root / "thin_coco.pt")),
            "data": str(self.root / "few.yaml"),
            **{"epochs": 3, "sizes": (64,), "speedups": (1.2,), "batch_size": 4, "workers": 0, "rounds": 2},
            "project": str(self.root / "runs"),
        }
        return FrontierConfig(**{**own, **values})

    @property
    def rows(self) -> Path:
        """Folder of the rows."""
        return self.root / "runs/few_wide_64px_3epochs"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    root = tmp_path_factory.mktemp("frontier")
    for name, width in (("wide", "0.25"), ("thin", "0.125")):
        text = Path(TINY_CFG).read_text().replace("nc: 3", "nc: 5").replace("0.125", width)
        (root / f"{name}.yaml").write_text(text)
        torch.manual_seed(0)
        spec = ModelSpec.from_yaml(str(root / f"{name}.yaml"))
        weights = build_model(spec).state_dict()
        save_checkpoint(
            Checkpoint(spec=spec.to_dict(), names=tuple("abcde"), weights=weights), root / f"{name}_coco.pt"
        )
    for split in ("train", "val", "test"):
        paths = sorted((ROOT / "data/bccd/images" / split).glob("*.jpg"))[:6]
        (root / f"{split}.txt").write_text("\n".join(map(str, paths)))
    splits = "train: train.txt\nval: val.txt\ntest: test.txt\n"
    (root / "few.yaml").write_text(splits + "nc: 3\nnames: [RBC, WBC, Platelets]\n")
    return Place(root)


@pytest.fixture
def invented_times(monkeypatch: pytest.MonkeyPatch, place: Place) -> None:
    """Plan by invented times, since to measure a table takes a minute; and write reports beside the data."""

    def table(subject: Subject, *_: Any, **__: Any) -> LatencyTable:
        return invented_table(subject.model, ChannelGraph.of(subject.model), subject.image_chw, fixed_ms=0.1)

    monkeypatch.setattr(prune_latency, "latency_table", table)
    monkeypatch.setattr(report, "RESULTS", place.root / "results")


@pytest.mark.slow
@pytest.mark.usefixtures("invented_times")
def test_rows_are_trained_once_and_killed_ones_go_on(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    config = place.config(rows=("dense_wide_64", "trained_wide_*"), precisions=("fp32",))
    measure(config)
    slim = place.rows / "trained_wide_x1.2_seed0/slim"
    written = {path: path.stat().st_mtime_ns for path in place.rows.rglob("*") if path.is_file()}
    (text,) = (place.root / "results").glob("frontier_few_cpu_*.md")
    assert "trained dense network 1 sparse, 2 fine-tuning" in text.read_text()
    assert "ours, from a trained dense wide, speedup=1.2 | fp32" in text.read_text()
    assert text.with_suffix(".png").stat().st_size > 10_000
    assert f"![mAP over ms]({text.stem}.png)" in text.read_text()
    settings = (slim / "opt.yaml").read_text()
    assert f"weights: {place.rows / 'dense_wide_64_seed0/dense/weights/last.pt'}" in settings
    assert "target: speedup=1.2" in settings

    # Killed after its last epoch: only what lacks is made, all else stays as it is.
    lost = [slim / "result.json", slim / "round1/finetune/result.json"]
    for path in lost:
        path.unlink()
    measure(config)
    again = {path: path.stat().st_mtime_ns for path in place.rows.rglob("*") if path.is_file()}
    assert set(lost) <= {path for path in again if again[path] != written.get(path)}
    outside = [
        path for path in written if slim not in path.parents or "sparse" in path.parts or "prune" in path.parts
    ]
    assert {path: again[path] for path in outside} == {path: written[path] for path in outside}
    assert "written to" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.usefixtures("invented_times")
def test_smaller_network_with_more_pixels_is_trained_cut_and_shown(place: Place) -> None:
    # It trains and is measured at its own size; its speedup is relative to the reference at the size of the others.
    write_json(place.rows / "speeds.json", {"wide": 1.0, "thin": 1.6, "thin_80": 1.1})
    measure(place.config(rows=("higher_*",), precisions=("fp32",), speedups=(1.32,)))
    (path,) = (place.root / "results").glob("frontier_few_cpu_*.md")
    assert "| ours, from thin at 80 px, speedup=1.32 | fp32" in path.read_text()
    settings = (place.rows / "higher_thin_80_x1.32_seed0/slim/opt.yaml").read_text()
    assert f"weights: {place.rows / 'begun_thin_80_seed0/dense/weights/last.pt'}" in settings
    assert "target: speedup=1.2\n" in settings
    assert "img_size:\n- 80\n" in settings


@pytest.mark.slow
@pytest.mark.usefixtures("invented_times")
def test_all_that_is_complete_is_shown_and_int8_is_measured_on_its_own(place: Place) -> None:
    config = place.config(rows=("dense_wide_64",), seeds=(0, 1))
    measure(config)
    (path,) = (place.root / "results").glob("frontier_few_cpu_*.md")
    rows = [line for line in path.read_text().splitlines() if line.startswith("| dense wide, 64 px")]
    assert [line.split(" | ")[1] for line in rows] == ["fp32", "int8"]
    assert all(line.split(" | ")[5] == "2" for line in rows)
    folder = place.rows / "dense_wide_64_seed1"
    fp32, int8 = (json.loads((folder / f"measured_{name}.json").read_text()) for name in ("fp32", "int8"))
    assert fp32["artefact"] != int8["artefact"]
    assert (folder / int8["artefact"]).is_dir()
    assert len(int8["val"]["drawn"]) == 1000


def test_speeds_are_measured_once_and_relative_to_the_first(place: Place, tmp_path: Path) -> None:
    file, weights = tmp_path / "speeds.json", place.config().networks
    settings: dict[str, Any] = {"data": str(place.root / "few.yaml"), "size": 64, "file": file}
    found = speeds_of(weights, **settings)
    assert list(found) == [("wide", 64), ("thin", 64)]
    assert found["wide", 64] == 1.0
    assert found["thin", 64] > 0
    # What an earlier run measured is kept, and a higher size measured beside it.
    file.write_text(json.dumps({"wide": 1.0, "thin": 7.5}))
    higher = speeds_of(weights, **settings, higher_sizes=(512,))
    assert higher.keys() == {("wide", 64), ("thin", 64), ("thin", 512)}
    assert higher["thin", 64] == 7.5
    assert 0 < higher["thin", 512] < 1
    assert speeds_of(weights, **settings, higher_sizes=(512,)) == higher
    assert json.loads(file.read_text()) == {"wide": 1.0, "thin": 7.5, "thin_512": higher["thin", 512]}


@pytest.mark.usefixtures("invented_times")
def test_rows_without_their_package_are_left_out_with_a_line(
    place: Place, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    with pytest.raises(ConfigError, match="torch-pruning is not installed"):
        pruning_speed.import_torch_pruning()
    config = place.config(rows=("torch-pruning_*",), sizes=(32,))
    speeds = {"wide": 1.0, "thin": 1.5, "thin_48": 1.2}
    write_json(place.root / "runs/few_wide_32px_3epochs/speeds.json", speeds)
    with pytest.raises(ConfigError, match="none of them could be run"):
        measure(config)
    assert "rows of torch-pruning are left out: torch-pruning is not installed" in caplog.text


@pytest.mark.usefixtures("invented_times")
def test_pattern_that_names_no_row_is_refused_with_those_there_are(place: Place) -> None:
    with pytest.raises(
        ConfigError, match=r"--rows dense_m_64: no such row; choose from dense_wide_64 .*ours_wide_x1.2"
    ):
        measure(place.config(rows=("dense_m_64",)))
