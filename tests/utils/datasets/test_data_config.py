from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from utils.datasets.indexing.config import load_data_config
from utils.errors import ConfigError, DataError


def write_yaml(folder: Path, text: str) -> Path:
    path = folder / "data.yaml"
    path.write_text(text)
    return path


def test_names_may_be_a_list_or_a_mapping(tmp_path: Path) -> None:
    listed = load_data_config(write_yaml(tmp_path, "train: a\nnc: 2\nnames: [cat, dog]\n"))
    mapped = load_data_config(write_yaml(tmp_path, "train: a\nnames: {1: dog, 0: cat}\n"))
    texts = load_data_config(write_yaml(tmp_path, 'train: a\nnames: {"1": dog, "0": " cat"}\n'))
    assert listed.names == mapped.names == texts.names == ("cat", "dog")
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
    (tmp_path / "v.json").write_text(json.dumps({"images": [], "categories": categories}))
    assert load_data_config(write_yaml(tmp_path, "val: v.json\n")).names == ("cat", "dog")


def test_download_is_ignored_with_a_note(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    load_data_config(write_yaml(tmp_path, f"train: a\nnames: [x]\ndownload: touch {tmp_path}/ran\n"))
    assert "'download' is ignored" in caplog.text
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("text", "finding"),
    [
        (
            "trian: a\nnames: [x]\n",
            "image_root, download, and not trian",
        ),
        ("nc: 1\nnames: [x]\n", "names no split"),
        ("train: a\nnc: 3\nnames: [x, y]\n", "nc is 3 but there are 2 names"),
        ("train: a\nnc: 3\n", "has no 'names'"),
        ("train: a\nnames: {0: x, 2: y}\n", "expected 0 to 1"),
        ("train: a\nnames: {zero: x}\n", "expected 0 to 0"),
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


def test_foreign_keys_are_noted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    load_data_config(write_yaml(tmp_path, "train: a\nnames: [x]\nroboflow: {version: 1}\nchannels: 3\n"))
    assert "unused keys: roboflow, channels" in caplog.text


@pytest.mark.parametrize(
    "text",
    [
        *("../train/images", "../../train/images", "/content/set/train/images", "train\\images"),
        *("..\\train\\images", "C:\\Users\\me\\set\\train\\images"),
    ],
)
def test_paths_of_other_tools_and_machines_are_found(tmp_path: Path, text: str) -> None:
    (tmp_path / "set" / "train" / "images").mkdir(parents=True)
    (tmp_path / "set" / "images").mkdir()  # must not be taken for train/images
    config = load_data_config(write_yaml(tmp_path / "set", f"train: '{text}'\nnames: [x]\n"))
    assert config.sources("train")[0].samefile(tmp_path / "set" / "train" / "images")


def test_a_path_may_be_relative_to_the_yaml_or_to_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here" / "set" / "val").mkdir(parents=True)
    (tmp_path / "yamls" / "set" / "train").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    config = load_data_config(write_yaml(tmp_path / "yamls", "path: set\ntrain: train\nval: val\nnames: [x]\n"))
    assert config.sources("train") == (tmp_path / "yamls" / "set" / "train",)
    assert config.sources("val") == (tmp_path / "here" / "set" / "val",)


def test_a_folder_of_one_name_is_not_looked_for_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    config = load_data_config(write_yaml(tmp_path, "train: /gone/train/images\nnames: [x]\n"))
    with pytest.raises(DataError, match="/gone/train/images does not exist"):
        config.sources("train")


@pytest.mark.parametrize("name", ["instances.json", "train.txt", "folder"])
def test_data_given_itself_says_what_to_write(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.mkdir() if name == "folder" else path.write_text("{}")
    with pytest.raises(ConfigError, match=f"expected a YAML that names it; write one with: train: {path}"):
        load_data_config(path)


@pytest.mark.parametrize("name", ["data/bccd.yaml", "bccd.yaml", "bccd"])
def test_shipped_yamls_are_found_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    assert len(load_data_config(name).sources("val")) == 1
    (tmp_path / "bccd.yaml").write_text("val: mine\nnames: [x]\n")
    assert load_data_config("bccd.yaml").names == ("x",)


def test_a_root_category_is_no_class(tmp_path: Path) -> None:
    categories = [
        {"id": 0, "name": "cells", "supercategory": "none"},
        {"id": 1, "name": "RBC", "supercategory": "cells"},
    ]
    (tmp_path / "v.json").write_text(json.dumps({"images": [], "annotations": [], "categories": categories}))
    assert load_data_config(write_yaml(tmp_path, "val: v.json\n")).names == ("RBC",)


def test_classes_can_be_put_into_the_order_of_a_network(tmp_path: Path) -> None:
    config = load_data_config(write_yaml(tmp_path, "train: a\nnames: [cat, dog, cow]\n"))
    ordered = config.in_order_of(("cow", "cat", "dog"), weights="net.pt")
    assert (ordered.names, ordered.label_names) == (("cow", "cat", "dog"), ("cat", "dog", "cow"))
    assert ordered.label_classes == (1, 2, 0)
    with pytest.raises(ConfigError, match=r"only net.pt has 'hen'; only .*data.yaml has 'cow'"):
        config.in_order_of(("hen", "cat", "dog"), weights="net.pt")
    assert config.in_order_of(("0", "1", "2"), weights="net.pt").names == config.names


@pytest.mark.parametrize("names", ["[no, 007, 1.10, ~]", "{0: no, 1: 007, 2: 1.10, 3: ~}"])
def test_names_are_taken_as_they_are_written(tmp_path: Path, names: str) -> None:
    assert load_data_config(write_yaml(tmp_path, f"train: a\nnames: {names}\n")).names == ("no", "007", "1.10", "~")


@pytest.mark.parametrize("names", ["[{0: a}, {1: b}]", "[a, [b]]", "[a, '']"])
def test_names_that_are_none_are_refused(tmp_path: Path, names: str) -> None:
    with pytest.raises(DataError, match="expected the name of a class"):
        load_data_config(write_yaml(tmp_path, f"train: a\nnames: {names}\n"))


def test_the_number_of_classes_may_be_text(tmp_path: Path) -> None:
    assert load_data_config(write_yaml(tmp_path, "train: a\nnc: '2'\nnames: [x, y]\n")).num_classes == 2


def test_homes_and_variables_are_filled_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SETS", str(tmp_path))
    for folder in ("a", "b", "c"):
        (tmp_path / "sets" / folder).mkdir(parents=True)
    text = f"train: ~/sets/a\nval: $SETS/sets/b\ntest: file://{tmp_path}/sets/c\nnames: [x]\n"
    (tmp_path / "yaml").mkdir()
    config = load_data_config(write_yaml(tmp_path / "yaml", text))
    found = [config.sources(split)[0] for split in ("train", "val", "test")]
    assert found == [tmp_path / "sets" / folder for folder in ("a", "b", "c")]


def test_the_home_of_nobody_does_not_exist(tmp_path: Path) -> None:
    config = load_data_config(write_yaml(tmp_path, "path: ~nobody-here/x\nval: ~nobody-here/y\nnames: [x]\n"))
    with pytest.raises(DataError, match="does not exist"):
        config.sources("val")


def test_a_root_of_one_file_is_a_class_if_another_has_boxes_of_it(tmp_path: Path) -> None:
    categories = [{"id": 0, "name": "car"}, {"id": 1, "name": "van", "supercategory": "car"}]
    box = {"id": 1, "image_id": 1, "category_id": 0, "bbox": [1, 2, 3, 4]}
    content = {"images": [{"id": 1, "file_name": "a.png"}], "annotations": [], "categories": categories}
    (tmp_path / "t.json").write_text(json.dumps(content))
    (tmp_path / "v.json").write_text(json.dumps({**content, "annotations": [box]}))
    assert load_data_config(write_yaml(tmp_path, "train: t.json\n")).names == ("van",)
    assert load_data_config(write_yaml(tmp_path, "train: t.json\nval: v.json\n")).names == ("car", "van")
