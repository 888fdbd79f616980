from __future__ import annotations

from pathlib import Path

import pytest
from dataset_factory import write_image

from utils.datasets.indexing.config import load_data_config
from utils.datasets.indexing.index import build_label_index
from utils.datasets.reading.voc import VocConfig, convert_voc, read_voc_xml
from utils.errors import DataError


def voc_xml(*objects: str, size: str = "<width>100</width><height>50</height>") -> str:
    return f"<annotation><size>{size}</size>{''.join(objects)}</annotation>"


def voc_object(name: str, box: tuple[int, int, int, int], *, difficult: int = 0) -> str:
    sides = "".join(f"<{tag}>{v}</{tag}>" for tag, v in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True))
    return f"<object><name>{name}</name><difficult>{difficult}</difficult><bndbox>{sides}</bndbox></object>"


@pytest.fixture
def devkit(tmp_path: Path) -> Path:
    """Two pictures, one in each set."""
    root = tmp_path / "VOC2007"
    for folder in ("Annotations", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    for stem in ("000001", "000002"):
        write_image(root / "JPEGImages" / f"{stem}.jpg", (50, 100))
    (root / "ImageSets/Main/trainval.txt").write_text("000001\n")
    (root / "ImageSets/Main/test.txt").write_text("000002\n")
    hard = voc_object("cat", (1, 1, 10, 10), difficult=1)
    (root / "Annotations/000001.xml").write_text(voc_xml(voc_object("dog", (11, 6, 30, 25)), hard))
    (root / "Annotations/000002.xml").write_text(voc_xml(voc_object("cat", (1, 1, 100, 50))))
    return root


def test_the_result_is_a_data_set_this_project_reads(devkit: Path, tmp_path: Path) -> None:
    data_yaml = convert_voc(VocConfig(source=devkit, target=tmp_path / "out"))
    config = load_data_config(data_yaml)
    assert config.names == ("cat", "dog")
    train = build_label_index(config, "train")
    # Pixels 11 to 30 are the edges 10 to 30.
    assert train.labels[0].shape == (1, 5)
    assert train.labels[0][0].tolist() == pytest.approx([1, 0.2, 0.3, 0.2, 0.4])
    val = build_label_index(config, "val")
    assert val.labels[0].tolist() == [[0, 0.5, 0.5, 1, 1]]


def test_difficult_objects_are_kept_when_asked(devkit: Path, tmp_path: Path) -> None:
    data_yaml = convert_voc(VocConfig(source=devkit, target=tmp_path / "out", keep_difficult=True))
    assert len(build_label_index(load_data_config(data_yaml), "train").labels[0]) == 2


def test_an_existing_target_is_not_touched(devkit: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(DataError, match="already exists"):
        convert_voc(VocConfig(source=devkit, target=tmp_path / "out"))
    assert list((tmp_path / "out").iterdir()) == []


def test_an_unknown_set_names_those_there_are(devkit: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"one of: test, trainval"):
        convert_voc(VocConfig(source=devkit, target=tmp_path / "out", train_set="train"))


def test_a_missing_image_is_named(devkit: Path, tmp_path: Path) -> None:
    (devkit / "JPEGImages/000002.jpg").unlink()
    with pytest.raises(DataError, match=r"000002.jpg does not exist"):
        convert_voc(VocConfig(source=devkit, target=tmp_path / "out"))


@pytest.mark.parametrize(
    ("text", "finding"),
    [
        ('<!DOCTYPE a [<!ENTITY b "c">]><annotation>&b;</annotation>', "declares the document type"),
        ("<annotation><size>", "not VOC XML"),
        (voc_xml(size="<width>100</width>"), "without <size/height>"),
        (voc_xml(size="<width>0</width><height>5</height>"), "states the size 0 x 5"),
        (voc_xml("<object><name>a</name></object>"), "without <bndbox/xmin>"),
        (voc_xml(voc_object("a", ("x", 1, 2, 3))), "expected a number"),  # type: ignore[arg-type]
        (voc_xml(voc_object(" ", (1, 1, 2, 3))), "without <name>"),
    ],
)
def test_a_malformed_annotation_is_one_line(tmp_path: Path, text: str, finding: str) -> None:
    path = tmp_path / "a.xml"
    path.write_text(text)
    with pytest.raises(DataError) as caught:
        read_voc_xml(path)
    assert finding in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_missing_annotation_is_a_data_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="No such file"):
        read_voc_xml(tmp_path / "none.xml")
