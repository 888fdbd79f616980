"""Names of outputs: they keep stem and subfolder, lead back to one input each, and stay in the run folder."""

from __future__ import annotations

import logging
import os
import unicodedata
from pathlib import Path, PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from utils.detections.output_names import OutputNames, below_common_folder, class_folders

TOP = Path("/data/in")


def names_of(*paths: str) -> OutputNames:
    """Names of files below TOP."""
    return OutputNames([(TOP / path, TOP) for path in paths])


def labels_of(*paths: str) -> list[str]:
    names = names_of(*paths)
    return [names.label(str(TOP / path)) for path in paths]


def test_stem_as_long_as_a_name_can_be_leaves_room_for_what_follows() -> None:
    stems = ["é" * 125 + "a", "é" * 125 + "b"]
    names = OutputNames([(Path("x") / f"{stem}.mp4", Path("x")) for stem in stems])
    outputs = [names.label(f"x/{stem}.mp4", 7) for stem in stems]
    outputs += [names.crop(f"x/{stem}.mp4", 7, class_folder="c", number=3) for stem in stems]
    assert len(set(outputs)) == 4
    assert all(len(os.fsencode(Path(output).name)) <= 255 for output in outputs)
    assert outputs[0].endswith("_000007.txt")
    assert names.video(f"x/{stems[0]}.mp4") == f"{stems[0]}.mp4"


def test_each_kind_of_output_has_its_place() -> None:
    names, source = names_of("cam1/0001.jpg"), str(TOP / "cam1/0001.jpg")
    assert names.image(source) == "cam1/0001.jpg"
    assert names.video(source) == "cam1/0001.mp4"
    assert names.label(source) == "labels/cam1/0001.txt"
    assert names.label(source, 12) == "labels/cam1/0001_000012.txt"
    assert names.crop(source, class_folder="dog", number=3) == "crops/dog/cam1/0001_3.jpg"
    assert names.crop(source, 12, class_folder="dog", number=3) == "crops/dog/cam1/0001_000012_3.jpg"


@pytest.mark.parametrize(
    "stem",
    [
        "a b",
        "a_b",
        "my photo (1)",
        "x[1]",
        "数据 集",
        "größe",
        ".hidden",
        "..",
        "v1.2.3",
        "100%",
        "it's #1, really?",
        " a ",
    ],
)
def test_stem_is_kept_exactly(stem: str) -> None:
    assert labels_of(f"{stem}.jpg") == [f"labels/{stem}.txt"]


def test_space_and_underscore_stay_two_names() -> None:
    assert labels_of("a b.jpg", "a_b.jpg") == ["labels/a b.txt", "labels/a_b.txt"]


def test_same_stem_in_two_folders_and_a_numbered_stem_keep_apart() -> None:
    found = labels_of("cam1/0001.jpg", "cam2/0001.jpg", "cam3/0001_2.jpg")
    assert found == ["labels/cam1/0001.txt", "labels/cam2/0001.txt", "labels/cam3/0001_2.txt"]


def test_files_of_one_stem_carry_their_suffix_and_are_reported(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        found = labels_of("a.jpg", "a.png", "b.jpg")
    assert found == ["labels/a.jpg.txt", "labels/a.png.txt", "labels/b.txt"]
    assert "2 of 3 files" in caplog.text
    assert "a.jpg" in caplog.text


def test_nothing_is_reported_where_nothing_is_shared(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        labels_of("a.jpg", "b.jpg", "sub/a.jpg", "a.mp4")
    assert not caplog.text


def test_name_of_another_input_is_never_given_away() -> None:
    # a.jpg would be named as a.jpg.png is, and a.jpg_2 is taken as well.
    found = labels_of("a.jpg", "a.png", "a.jpg.png", "a.jpg_2.png")
    assert found == ["labels/a.jpg_3.txt", "labels/a.png.txt", "labels/a.jpg.txt", "labels/a.jpg_2.txt"]


def test_names_that_differ_only_in_case_or_composition_keep_apart() -> None:
    assert labels_of("A.jpg", "a.jpg") == ["labels/A.txt", "labels/a.jpg.txt"]
    assert labels_of("Cam/a.jpg", "cam/A.jpg") == ["labels/Cam/a.txt", "labels/cam/A.jpg.txt"]
    composed, apart = unicodedata.normalize("NFC", "é"), unicodedata.normalize("NFD", "é")
    assert labels_of(f"{composed}.jpg", f"{apart}.jpg") == [f"labels/{composed}.txt", f"labels/{apart}.jpg.txt"]


def test_frame_of_a_video_never_has_the_name_of_an_image() -> None:
    names = names_of("clip_000012.jpg", "clip.mp4", "other.mp4")
    assert names.label(str(TOP / "clip_000012.jpg")) == "labels/clip_000012.txt"
    assert names.label(str(TOP / "clip.mp4"), 12) == "labels/clip.mp4_000012.txt"
    assert names.label(str(TOP / "other.mp4"), 12) == "labels/other_000012.txt"


def test_image_and_video_of_one_stem_share_no_file_and_keep_it() -> None:
    names = names_of("a.jpg", "a.mov")
    assert (names.image(str(TOP / "a.jpg")), names.video(str(TOP / "a.mov"))) == ("a.jpg", "a.mp4")


@pytest.mark.parametrize("outside", ["/elsewhere/x.jpg", "/data/in/../out/x.jpg", "/data/x.jpg"])
def test_file_outside_of_its_folder_is_named_inside(outside: str) -> None:
    assert OutputNames([(Path(outside), TOP)]).label(outside) == "labels/x.txt"


def test_relative_and_absolute_spelling_are_one_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    spellings = ["a/x.jpg", "./a/x.jpg", "b/../a/x.jpg", str(tmp_path / "a/x.jpg")]
    names = OutputNames(below_common_folder([*spellings, "b/x.jpg"]))
    assert {names.label(spelling) for spelling in spellings} == {"labels/a/x.txt"}
    assert names.label("b/x.jpg") == "labels/b/x.txt"


def test_list_is_named_below_the_common_parent() -> None:
    paths = ["/d/cam1/0001.jpg", "/d/cam2/0001.jpg"]
    names = OutputNames(below_common_folder(paths))
    assert [names.label(path) for path in paths] == ["labels/cam1/0001.txt", "labels/cam2/0001.txt"]
    assert OutputNames(below_common_folder(paths[:1])).label(paths[0]) == "labels/0001.txt"
    assert below_common_folder([]) == []


def test_subfolders_called_as_entries_of_the_run_folder_do_not_mix_with_them() -> None:
    # A drawn crops/dog/x_0.png would be the first crop of x.jpg.
    names = names_of("crops/dog/x_0.png", "x.jpg", "opt.yaml/y.jpg")
    assert names.image(str(TOP / "crops/dog/x_0.png")) == "crops_2/dog/x_0.jpg"
    assert names.crop(str(TOP / "x.jpg"), class_folder="dog", number=0) == "crops/dog/x_0.jpg"
    assert names.image(str(TOP / "opt.yaml/y.jpg")) == "opt.yaml_2/y.jpg"
    assert names.label(str(TOP / "crops/dog/x_0.png")) == "labels/crops/dog/x_0.txt"


def test_folder_called_like_an_output_file_does_not_stop_it() -> None:
    assert labels_of("x.txt/y.jpg", "x.png") == ["labels/x.txt/y.txt", "labels/x.png.txt"]


def test_stream_is_named_by_its_address_without_secrets() -> None:
    names = OutputNames()
    assert names.name("rtsp://me:p@ss@cam.local:554/a/../b?user=me&password=x") == "rtsp_cam.local_554_a_.._b"
    assert names.name("camera 0", 7) == "camera_0_000007"
    assert names.name("://") == "stream"
    assert names.name("rtsp://cam/a") != names.name("rtsp://cam_a")


def test_class_folders_keep_names_and_keep_apart_what_cleans_to_the_same() -> None:
    assert class_folders(("traffic light", "猫", "R.B.C")) == ("traffic light", "猫", "R.B.C")
    assert class_folders(("a/b", "a:b", "a_b", "c")) == ("a_b_0", "a_b_1", "a_b_2", "c")
    assert class_folders(("a/b", "a_b", "a_b_0")) == ("a_b_0_2", "a_b_1", "a_b_0")
    assert class_folders(("Cat", "cat")) == ("Cat_0", "cat_1")
    assert class_folders(("..", "", "/")) == ("__0", "__1", "__2")


# -- any set of inputs ---------------------------------------------------------------------------------------------

_PARTS = st.sampled_from(
    [
        "a",
        "A",
        "b",
        "a b",
        "a_2",
        "a_000001",
        "a_000001_2",
        ".",
        "..",
        "é",
        "e\u0301",
        "a.jpg",
        "a.txt",
        "crops",
        "labels",
        "猫",
    ]
)
_SUFFIXES = st.sampled_from([".jpg", ".JPG", ".png", ".mp4", ".avi", ""])
_FILES = st.tuples(st.lists(_PARTS.filter(lambda part: part.strip(".")), max_size=2), _PARTS, _SUFFIXES)


def _path(parts: tuple[list[str], str, str]) -> str:
    folders, stem, suffix = parts
    return "/".join([*folders, stem + (suffix if stem.strip(".") else ".jpg")])


def _is_video(path: str) -> bool:
    return path.lower().endswith((".mp4", ".avi"))


def _outputs(names: OutputNames, source: str, *, is_video: bool) -> list[str]:
    """Files that a run may write for an input."""
    if not is_video:
        crops = [names.crop(source, class_folder="dog", number=number) for number in (0, 1, 2, 12)]
        return [names.image(source), names.label(source), *crops]
    frames = (0, 1, 2, 1_000_000)
    return [
        names.video(source),
        *(names.label(source, frame) for frame in frames),
        *(names.crop(source, frame, class_folder="dog", number=number) for frame in frames for number in (0, 2)),
    ]


def _folded(path: str) -> str:
    return unicodedata.normalize("NFC", path.casefold())


@given(st.lists(_FILES.map(_path), min_size=1, max_size=12, unique=True))
def test_outputs_of_any_inputs_are_distinct_keep_the_stem_and_stay_in_the_folder(paths: list[str]) -> None:
    names = names_of(*paths)
    seen: list[str] = ["opt.yaml", "result.json", "detections.json"]
    for path in paths:
        outputs = _outputs(names, str(TOP / path), is_video=_is_video(path))
        assert all(PurePosixPath(output).name.startswith(Path(path).stem) for output in outputs)
        subfolder = str(PurePosixPath(path).parent)
        assert str(PurePosixPath(names.label(str(TOP / path))).parent) == str(PurePosixPath("labels", subfolder))
        seen += outputs
    for output in seen:
        assert ".." not in output.split("/")
        assert not os.path.isabs(output)
    folded = [_folded(output) for output in seen]
    assert len(set(folded)) == len(folded)
    folders = {str(parent) for output in folded for parent in PurePosixPath(output).parents}
    assert not folders & set(folded), "no file lies where another needs a folder"


@given(st.lists(st.text(max_size=4), min_size=1, max_size=8))
def test_class_folders_of_any_names_are_distinct_folders(names: list[str]) -> None:
    folders = class_folders(tuple(names))
    assert len({_folded(folder) for folder in folders}) == len(names)
    assert all(folder.strip(".") and "/" not in folder and "\\" not in folder for folder in folders)
