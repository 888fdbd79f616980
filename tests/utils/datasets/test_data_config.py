from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from utils.datasets.config import load_data_config
from utils.errors import ConfigError, DataError


def write_yaml(folder: Path, text: str) -> Path:
    path = folder / "data.yaml"
    path.write_text(text)
    return path


def test_names_may_be_a_list_or_a_mapping(tmp_path: Path) -> None:
    listed = load_data_config(write_yaml(tmp_path, "train: a\nnc: 2\nnames: [cat, dog]\n"))
    mapped = load_data_config(write_yaml(tmp_path, "train: a\nnames: {1: dog, 0: cat}\n"))
    assert listed.names == mapped.names == ("cat", "dog")
    assert mapped.num_classes == 2


def test_paths_start_from_the_path_key_then_the_yaml_then_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, project = tmp_path / "here", tmp_path / "project"
    for folder in (here / "only_here", project / "data" / "beside", project / "data" / "root" / "beside"):
        folder.mkdir(parents=True)
    monkeypatch.chdir(here)
    path = write_yaml(project / "data", "path: root\ntrain: beside\nval: only_here\nnames: [a]\n")
    config = load_data_config(path)
    assert config.sources("train") == (project / "data" / "root" / "beside",)
    assert config.sources("val") == (here / "only_here",)


def test_a_split_may_have_several_sources(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    config = load_data_config(write_yaml(tmp_path, "train: [a, b]\nnames: [x]\n"))
    assert config.sources("train") == (tmp_path / "a", tmp_path / "b")


def test_json_categories_sorted_by_id_stand_in_for_names(tmp_path: Path) -> None:
    categories = [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}]
    (tmp_path / "v.json").write_text(json.dumps({"categories": categories}))
    assert load_data_config(write_yaml(tmp_path, "val: v.json\n")).names == ("cat", "dog")


def test_download_is_ignored_with_a_note(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    load_data_config(write_yaml(tmp_path, f"train: a\nnames: [x]\ndownload: touch {tmp_path}/ran\n"))
    assert "'download' is ignored" in caplog.text
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("text", "finding"),
    [
        ("train: a\nnames: [x]\ncolour: red\n", "unknown key 'colour'; known: path, train"),
        ("nc: 1\nnames: [x]\n", "names no split"),
        ("train: a\nnc: 3\nnames: [x, y]\n", "nc is 3 but there are 2 names"),
        ("train: a\nnc: 3\n", "has no 'names'"),
        ("train: a\nnames: {0: x, 2: y}\n", "expected 0 to 1"),
        ("train: a\nnames: dog\n", "expected a list"),
        ("train: 5\nnames: [x]\n", "train is 5"),
        ("train: a\nnames: [x]\nimage_root: [a]\n", "image_root"),
        ("train: a\npath: 3\nnames: [x]\n", "path is 3"),
    ],
)
def test_a_wrong_yaml_is_one_line_with_file_and_finding(tmp_path: Path, text: str, finding: str) -> None:
    path = write_yaml(tmp_path, text)
    with pytest.raises(DataError) as caught:
        load_data_config(path)
    assert finding in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_yaml_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        load_data_config(tmp_path / "none.yaml")


def test_asking_for_a_split_that_is_not_there_says_which_are(tmp_path: Path) -> None:
    config = load_data_config(write_yaml(tmp_path, "train: a\nnames: [x]\n"))
    with pytest.raises(DataError, match="no 'test:' line, only train"):
        config.sources("test")
    with pytest.raises(DataError, match="does not exist"):
        config.sources("train")
    with pytest.raises(DataError, match="unknown; known: train, val, test"):
        config.sources("dev")


@pytest.mark.parametrize(
    ("name", "num_classes"), [("bccd", 3), ("coco", 80), ("coco128", 80), ("voc", 20), ("bccd/data", 3)]
)
def test_every_shipped_yaml_loads(name: str, num_classes: int) -> None:
    data = Path(__file__).parents[3] / "data"
    config = load_data_config(data / f"{name}.yaml")
    assert config.num_classes == num_classes
    assert len(set(config.names)) == num_classes


def test_class_named_twice_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "data.yaml"
    path.write_text("train: images\nnames: [cat, dog, cat]\n")
    assert load_data_config(path).names == ("cat", "dog", "cat")
    assert "class 'cat' is named twice" in caplog.text
