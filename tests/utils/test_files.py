"""Files are whole or absent, whatever happens while they are written."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest

from utils.errors import ConfigError
from utils.storage.files import atomic_write, read_yaml, sha256_of, write_json, write_text, write_yaml


def test_write_makes_missing_folders(tmp_path: Path) -> None:
    write_text(tmp_path / "a/b/c.txt", "blüte")
    assert (tmp_path / "a/b/c.txt").read_text(encoding="utf-8") == "blüte"


def test_file_with_the_longest_name_is_written(tmp_path: Path) -> None:
    name = "数" * 83 + "ab.txt"  # 255 bytes
    write_text(tmp_path / name, "here")
    assert [(entry.name, entry.read_text()) for entry in tmp_path.iterdir()] == [(name, "here")]


@pytest.mark.parametrize("error", [RuntimeError("bug"), KeyboardInterrupt()])
def test_error_while_writing_leaves_the_old_file_and_nothing_else(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "file.txt"
    path.write_text("old")

    def write_half() -> None:
        with atomic_write(path) as temporary:
            temporary.write_text("half")
            raise error

    with pytest.raises(type(error)):
        write_half()
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["file.txt"]


def test_full_disk_names_the_file_and_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file.txt").write_text("old")

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(ConfigError, match=r"cannot write .*file\.txt: No space left on device; free space or choose"):
        write_text(tmp_path / "file.txt", "new")
    assert (tmp_path / "file.txt").read_bytes() == b"old"


def test_file_in_the_way_of_a_folder_is_a_config_error(tmp_path: Path) -> None:
    (tmp_path / "way").write_text("")
    with pytest.raises(ConfigError, match="cannot write"):
        write_text(tmp_path / "way/file.txt", "text")


def test_json_has_null_for_nan_and_text_for_paths(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"nan": float("nan"), "path": Path("x/y"), 3: (1, 2.5)})
    content = json.loads((tmp_path / "a.json").read_text())
    assert content == {"nan": None, "path": "x/y", "3": [1, 2.5]}


def test_json_has_null_for_infinity(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", [float("inf"), -float("inf")])
    assert json.loads((tmp_path / "a.json").read_text()) == [None, None]


def test_yaml_comes_back_in_the_given_order(tmp_path: Path) -> None:
    write_yaml(tmp_path / "a.yaml", {"z": 1, "a": [1, 2]})
    assert list(read_yaml(tmp_path / "a.yaml", what="test").items()) == [("z", 1), ("a", [1, 2])]


@pytest.mark.parametrize(
    ("content", "finding"),
    [
        (b"a: [1, 2\nb: 3", "cannot be read as YAML"),
        (b"\xff\xfe\x00", "cannot be read as YAML"),
        (b"- 1\n- 2\n", "contains list"),
        (b"", "contains NoneType"),
        (b"a: " + b"[" * 5000, "cannot be read as YAML"),
        (b"a: !!python/object/apply:os.system ['true']", "cannot be read as YAML"),
    ],
)
def test_file_that_is_no_mapping_is_named_in_one_line(tmp_path: Path, content: bytes, finding: str) -> None:
    path = tmp_path / "data.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        read_yaml(path, what="data set")
    assert str(caught.value).startswith(f"data set file {path}")
    assert finding in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_and_unreadable_yaml_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.yaml does not exist; check the path"):
        read_yaml(tmp_path / "none.yaml", what="model")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_yaml(tmp_path, what="model")


def test_sha256_is_that_of_the_content(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")
    assert sha256_of(tmp_path / "abc").startswith("ba7816bf8f01cfea")
