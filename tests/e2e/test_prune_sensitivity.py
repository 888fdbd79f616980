"""prune.py --sensitivity: one layer at a time pruned and measured, a table, JSON and a plot, and going on."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from interruption import Killed
from labelled_classifier import ClassifierPlace, make_classifier_place
from refusal import make_place, refusal

from commands.prune import measure_sensitivity, prune
from commands.prune_config import SHARES, PruneConfig
from pruning.channels.graph import ChannelGraph
from pruning.importance.criteria import CRITERIA
from pruning.selection.sensitivity import LayerScore, Sensitivity
from pruning.surgery.cut import cut
from tasks.choose import CLASSIFICATION
from tasks.measuring import open_evaluator
from utils.config.cli import parse
from utils.errors import CheckpointError, ConfigError

# Outputs of the layers of LeNet5 that may be pruned.
WIDTHS = {"features.0": 6, "features.3": 16, "classifier.0": 120, "classifier.2": 84}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> ClassifierPlace:
    return make_classifier_place(tmp_path_factory.mktemp("lenet5"), "lenet5")


def config_of(place: ClassifierPlace, **settings: Any) -> PruneConfig:
    own = {"criterion": "kernel_l1", "sensitivity": (0.5, 0.1), "constants": False}
    return PruneConfig(**place.settings(**{**own, **settings}))


@pytest.fixture(scope="module")
def finished(place: ClassifierPlace) -> Sensitivity:
    return measure_sensitivity(config_of(place, name="whole", noplots=False))


def test_each_layer_is_cut_alone_by_its_least_important_channels(
    place: ClassifierPlace, finished: Sensitivity
) -> None:
    found = {(row.layers, row.share): row.pruned for row in finished.rows}
    # A tenth of 6 channels is none.
    shares = {name: (0.5,) if width < 10 else (0.1, 0.5) for name, width in WIDTHS.items()}
    assert found == {((name,), share): int(share * WIDTHS[name]) for name in WIDTHS for share in shares[name]}
    config = config_of(place)
    network = CLASSIFICATION.load(config.weights)
    evaluator = open_evaluator(CLASSIFICATION, config.training(), network, device=torch.device("cpu"))
    graph = ChannelGraph.of(network.model, image_chw=place.chw)
    importance = CRITERIA["kernel_l1"](network.model, graph)
    for row in finished.rows:
        ids = graph.layers[row.layers[0]].output_ids
        least = ids[importance[ids].argsort(kind="stable")[: row.pruned]]
        smaller = cut(network.model, graph, least, carry=False)
        assert evaluator.evaluate(smaller).headline == row.headline


def test_folder_has_the_table_and_a_plot_and_no_network(place: ClassifierPlace, finished: Sensitivity) -> None:
    folder = place.project / "whole"
    assert {path.name for path in folder.iterdir()} == {"opt.yaml", "sensitivity.json", "sensitivity.png"}
    assert Sensitivity.load(folder) == finished
    assert finished.score == 1.0  # it labels its images itself
    assert (folder / "sensitivity.png").stat().st_size > 1000


def test_table_begins_with_what_loses_most(finished: Sensitivity) -> None:
    first, head, *lines = finished.as_text().splitlines()
    assert first == "accuracy 1.0000 without a cut; with one layer pruned:"
    assert head.split() == ["layer", "channels", "10%", "50%"]
    worst = [
        finished.score - min(row.score for row in finished.rows if row.layers == (line.split()[0],)) for line in lines
    ]
    assert worst == sorted(worst, reverse=True)
    assert {line.split()[0]: int(line.split()[1]) for line in lines} == WIDTHS
    assert next(line for line in lines if line.startswith("features.0")).split()[2] == "-"
    assert max(worst) > 0


def test_killed_run_goes_on_with_what_is_missing(
    place: ClassifierPlace, finished: Sensitivity, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    measure = LayerScore.to_dict

    def count_or_die(row: LayerScore) -> dict[str, Any]:
        if row.layers == ("classifier.0",):
            raise Killed
        return measure(row)

    with monkeypatch.context() as patch:
        patch.setattr(LayerScore, "to_dict", count_or_die)
        with pytest.raises(Killed):
            prune(config_of(place, name="killed"))
    folder = place.project / "killed"
    assert [row.name for row in Sensitivity.load(folder).rows] == ["features.0", "features.3", "features.3"]
    with caplog.at_level(logging.INFO):
        assert prune(PruneConfig(resume=str(folder), device="cpu")) is None
    assert Sensitivity.load(folder) == finished
    lines = [line for line in caplog.messages if re.match(r"\d of 7: ", line)]
    assert [line.split()[0] for line in lines] == ["4", "5", "6", "7"]
    assert re.search(
        r"4 of 7: classifier.0 without 12 of 120 channels: .*accuracy \d\.\d{3}.*, \d+\.\d min left", lines[0]
    )


def test_other_weights_than_at_the_start_are_refused_on_resume(
    place: ClassifierPlace, finished: Sensitivity, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = place.project / "other"
    folder.mkdir()
    (folder / "opt.yaml").write_text((place.project / "whole/opt.yaml").read_text())
    values = json.loads((place.project / "whole/sensitivity.json").read_text())
    (folder / "sensitivity.json").write_text(json.dumps({**values, "fingerprint": "another"}))
    line = refusal("prune", ["--resume", str(folder), "--device", "cpu"], capsys)
    assert line == f"--weights {place.weights} is not the network this run began with; put that file back"


@pytest.mark.parametrize("text", ["{", "{}", '{"fingerprint": "a", "dense": {"accuracy": 1}, "rows": [{}]}', "[]"])
def test_damaged_table_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "sensitivity.json").write_text(text)
    with pytest.raises(CheckpointError, match="sensitivity.json is damaged .*; run prune.py --sensitivity anew"):
        Sensitivity.load(tmp_path)


def test_fewer_images_may_be_measured(place: ClassifierPlace) -> None:
    found = measure_sensitivity(config_of(place, name="few", sensitivity=(0.5,), sensitivity_images=10))
    assert all(round(row.score * 10, 6).is_integer() for row in found.rows)


def test_network_that_finds_nothing_is_refused_and_nothing_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = make_place(tmp_path)
    arguments = [*place.arguments("prune"), "--data", str(place.data), "--workers", "0", "--sensitivity", ".5"]
    line = refusal("prune", arguments, capsys)
    assert "the network has mAP 0.000 on this data before any channel is cut, so no layer can lose any" in line
    assert not place.project.exists()


def test_flag_alone_has_shares() -> None:
    line = ["--weights", "a.pt", "--data", "d.yaml", "--sensitivity"]
    assert parse(PruneConfig, line, bare={"--sensitivity": SHARES}).sensitivity == (0.25, 0.5, 0.75)
    named = [*line[:-1], "--sensitivity", ".1", "--img", "64"]
    assert parse(PruneConfig, named, bare={"--sensitivity": SHARES}).sensitivity == (0.1,)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sensitivity": (0.5, 1.0)}, r"--sensitivity 1.0: expected shares between 0 and 1, such as 0.25 0.5 0.75"),
        ({"sensitivity": (0.0,)}, r"--sensitivity 0.0: expected shares"),
        ({"data": ""}, r"--sensitivity measures on images; give --data"),
        ({"percent": 0.5}, r"--sensitivity only measures, one layer at a time; leave --percent out"),
        ({"scan": True}, r"leave --scan out"),
        ({"dry_run": True}, r"leave --dry-run out"),
        ({"target": "macs=50%"}, r"leave --target out"),
        ({"sensitivity_images": -1}, r"--sensitivity-images -1: expected at least 0"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        PruneConfig(**{"weights": "a.pt", "data": "d.yaml", "sensitivity": (0.5,), **settings})


def test_name_of_layers_that_are_cut_together_counts_the_others() -> None:
    row = LayerScore(layers=("a", "b", "c"), channels=8, share=0.5, pruned=4, headline={"accuracy": 0.5})
    assert row.name == "a +2"
