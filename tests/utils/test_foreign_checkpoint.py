"""Pickles of YOLOv5 are read, and hostile ones are refused by name without running."""

from __future__ import annotations

import io
import pickle
import zipfile
from pathlib import Path

import pytest
import torch

from utils.errors import CheckpointError
from utils.storage.foreign_checkpoint import read_foreign_checkpoint
from utils.storage.inert_pickle import read_inert, tensor_in


def write_zip(path: Path, pickled: bytes, **storages: bytes) -> Path:
    """A file in torch's zip format with the given pickle and storages."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
        for key, content in storages.items():
            archive.writestr(f"archive/data/{key.removeprefix('s')}", content)
    return path


class _Reference:
    """Pickles as a reference to a storage."""

    def __init__(self, pid: tuple[object, ...]) -> None:
        self.pid = pid


def tensor_pickle(
    *, key: str = "0", count: int = 4, offset: int = 0, size: tuple[int, ...] = (4,), stride: tuple[int, ...] = (1,)
) -> bytes:
    """One float tensor, in the form torch writes."""

    class Pickler(pickle.Pickler):
        def persistent_id(self, value: object) -> object:
            return value.pid if isinstance(value, _Reference) else None

    class Rebuilt:
        def __reduce__(self) -> tuple[object, ...]:
            reference = _Reference(("storage", torch.FloatStorage, key, "cpu", count))
            return torch._utils._rebuild_tensor_v2, (reference, offset, size, stride, False, None)

    file = io.BytesIO()
    Pickler(file, protocol=2).dump(Rebuilt())
    return file.getvalue()


def test_pickle_of_v5_comes_across(shared: Path) -> None:
    foreign = read_foreign_checkpoint(shared / "weights/yolov5s_v5_h2b_2classes.pt")
    assert foreign.names == ("Apoptosis", "Mitosis")
    assert foreign.strides == (8, 16, 32)
    assert foreign.anchors[2] == (116.0, 90.0, 156.0, 198.0, 373.0, 326.0)
    assert foreign.yaml["width_multiple"] == 0.5
    assert foreign.state["model.24.m.0.weight"].shape == (21, 128, 1, 1)
    assert {value.dtype for value in foreign.state.values()} == {torch.float32, torch.int64}


def test_tensor_is_rebuilt_from_offset_size_and_stride(tmp_path: Path) -> None:
    content = torch.arange(6.0).numpy().tobytes()
    pickled = tensor_pickle(count=6, offset=1, size=(2, 2), stride=(1, 2))
    tensor = tensor_in(read_inert(write_zip(tmp_path / "t.pt", pickled, s0=content)))
    assert tensor is not None
    assert tensor.tolist() == [[1.0, 3.0], [2.0, 4.0]]


def hostile(name: str, *arguments: object) -> bytes:
    """A pickle that calls `module.name` with the arguments when it is read by a trusting reader."""
    module, _, function = name.rpartition(".")
    body = pickle.dumps(tuple(arguments), protocol=2)[2:-1]
    return b"\x80\x02c" + f"{module}\n{function}\n".encode() + body + b"R."


@pytest.mark.parametrize(
    "name",
    ["os.system", "posix.system", "subprocess.Popen", "builtins.exec", "builtins.eval", "__builtin__.getattr",
     "torch.load", "torch.hub.load", "importlib.import_module", "torch.serialization.load", "models.common.os",
     "operator.attrgetter", "numpy.load"],
)  # fmt: skip
def test_global_outside_the_list_is_refused_by_name_and_not_run(name: str, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    path = write_zip(tmp_path / "evil.pt", hostile(name, f"touch {victim}"))
    with pytest.raises(CheckpointError, match=f"refer to {name}") as caught:
        read_foreign_checkpoint(path)
    assert str(path) in str(caught.value)
    assert not victim.exists()


def test_attribute_of_an_allowed_name_is_refused(tmp_path: Path) -> None:
    # Protocol 4 takes dotted names; a reader that follows them would reach __globals__.
    module, name = b"collections", b"OrderedDict.__init__.x"
    nested = b"\x80\x04\x8c" + bytes([len(module)]) + module + b"\x8c" + bytes([len(name)]) + name + b"\x93."
    with pytest.raises(CheckpointError, match=r"collections\.OrderedDict\.__init__\.x"):
        read_foreign_checkpoint(write_zip(tmp_path / "nested.pt", nested))


def test_reduce_of_a_real_object_is_refused(tmp_path: Path) -> None:
    victim = tmp_path / "victim"

    class Evil:
        def __reduce__(self) -> tuple[object, ...]:
            return Path.touch, (victim,)

    with pytest.raises(CheckpointError, match="refused"):
        read_foreign_checkpoint(write_zip(tmp_path / "evil.pt", pickle.dumps({"model": Evil()}, protocol=2)))
    assert not victim.exists()


def test_hostile_part_beside_a_network_is_refused(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    call = hostile("os.system", f"touch {victim}")[2:-1]
    pickled = b"\x80\x02}X\x05\x00\x00\x00model" + call + b"s."
    with pytest.raises(CheckpointError, match=r"os\.system"):
        read_foreign_checkpoint(write_zip(tmp_path / "evil.pt", pickled))
    assert not victim.exists()


def test_method_of_a_stand_in_cannot_be_replaced_by_a_call(tmp_path: Path) -> None:
    # A stand-in is no function: calling the instance ends the reading.
    pickled = b"\x80\x02cmodels.common\nConv\n)R(tR."
    with pytest.raises(CheckpointError, match="damaged"):
        read_foreign_checkpoint(write_zip(tmp_path / "call.pt", pickled))


@pytest.mark.parametrize("key", ["../../etc/passwd", "/etc/passwd", "..", "a/b"])
def test_storage_key_with_a_path_is_refused(key: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="not a storage of this file"):
        read_inert(write_zip(tmp_path / "t.pt", tensor_pickle(key=key), s0=bytes(16)))


@pytest.mark.parametrize(
    "change",
    [
        {"size": (5,)},
        {"offset": 1},
        {"offset": -1},
        {"stride": (2,)},
        {"stride": (-1,)},
        {"size": (1000,), "stride": (0,)},
        {"count": 100},
        {"key": "7"},
    ],
)
def test_tensor_outside_its_storage_is_refused(change: dict[str, object], tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="damaged"):
        read_inert(write_zip(tmp_path / "t.pt", tensor_pickle(**change), s0=bytes(16)))


@pytest.mark.parametrize(
    ("content", "finding"),
    [
        ({"epoch": 3}, "contain no network"),
        ({"model": None, "ema": None}, "contain no network"),
        ([1, 2], "contain no network"),
    ],
)
def test_pickle_without_a_network_is_refused(content: object, finding: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=finding):
        read_foreign_checkpoint(write_zip(tmp_path / "x.pt", pickle.dumps(content, protocol=2)))


def test_zip_without_a_pickle_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.pt", "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(CheckpointError, match=r"no data\.pkl"):
        read_foreign_checkpoint(tmp_path / "x.pt")


def test_cut_pickle_is_refused(tmp_path: Path) -> None:
    pickled = pickle.dumps({"model": [1, 2, 3]}, protocol=2)[:-4]
    with pytest.raises(CheckpointError, match="damaged"):
        read_foreign_checkpoint(write_zip(tmp_path / "x.pt", pickled))
