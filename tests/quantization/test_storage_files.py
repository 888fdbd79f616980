"""Quantised networks as files: the same integers back from every form, and one line for every bad file."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from storage_programs import FINGERPRINT, assert_same_program, lenet5_program, random_program

from quantization.program.program import IntegerProgram
from quantization.storage.binary import load_program, program_bytes, program_from_bytes, save_program
from quantization.storage.sizes import as_table, float_bytes, form_sizes
from quantization.storage.text import load_float_yaml, load_yaml, program_text, save_float_yaml, save_yaml
from utils.errors import CheckpointError, ConfigError

LAYOUTS = ("dense", "coo", "csr", "csc")
SPARSE = LAYOUTS[1:]


def members(data: bytes) -> dict[str, np.ndarray[Any, Any]]:
    with np.load(io.BytesIO(data), allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


def with_header(data: bytes, change: Callable[[dict[str, Any]], None]) -> bytes:
    """The file with another header."""
    found = members(data)
    header = json.loads(found["header"].tobytes())
    change(header)
    buffer = io.BytesIO()
    np.savez(buffer, header=np.frombuffer(json.dumps(header).encode(), np.uint8), streams=found["streams"])
    return buffer.getvalue()


def refused(data: bytes, words: str) -> None:
    with pytest.raises(CheckpointError, match=words) as caught:
        program_from_bytes(data)
    assert "\n" not in str(caught.value)


def program_or_message(data: bytes) -> IntegerProgram | str:
    try:
        return program_from_bytes(data)
    except CheckpointError as error:
        return str(error)


@pytest.fixture(scope="module")
def lenet5() -> IntegerProgram:
    return lenet5_program()


class TestRoundTrip:
    @settings(max_examples=15)
    @given(seed=st.integers(0, 10**6), layout=st.sampled_from(LAYOUTS))
    def test_any_program_comes_back_from_the_compact_file(self, seed: int, layout: str) -> None:
        program = random_program(seed)
        assert_same_program(program_from_bytes(program_bytes(program, layout=layout)), program)

    @settings(max_examples=8)
    @given(seed=st.integers(0, 10**6), layout=st.sampled_from(LAYOUTS))
    def test_any_program_comes_back_from_yaml(self, tmp_path_factory: Any, seed: int, layout: str) -> None:
        path = tmp_path_factory.mktemp("yaml") / "network.yaml"
        program = random_program(seed)
        save_yaml(program, path, layout=layout)
        assert_same_program(load_yaml(path, fingerprint=FINGERPRINT), program)

    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_lenet5_comes_back_from_its_file(self, tmp_path: Path, lenet5: IntegerProgram, layout: str) -> None:
        save_program(lenet5, tmp_path / "lenet5.npz", layout=layout)
        assert_same_program(load_program(tmp_path / "lenet5.npz", fingerprint=FINGERPRINT), lenet5)

    @pytest.mark.parametrize("bits", [2, 3, 4, 6, 12, 16])
    def test_lenet5_comes_back_at_other_bits(self, bits: int) -> None:
        program = lenet5_program(bits=bits)
        assert_same_program(program_from_bytes(program_bytes(program, layout="csr")), program)

    def test_the_same_program_gives_the_same_bytes(self, lenet5: IntegerProgram) -> None:
        assert program_bytes(lenet5, layout="csc") == program_bytes(lenet5_program(), layout="csc")

    def test_numpy_opens_the_file_without_pickle(self, lenet5: IntegerProgram) -> None:
        found = members(program_bytes(lenet5, layout="coo"))
        header = json.loads(found["header"].tobytes())
        assert (header["version"], header["layout"], header["fingerprint"]) == (2, "coo", FINGERPRINT)
        assert [item["name"] for item in header["operations"]][:3] == ["input", "conv1", "pool1"]


class TestSizes:
    @pytest.mark.parametrize("layout", SPARSE)
    def test_sparse_lenet5_is_fifteen_times_smaller_than_in_float32(
        self, lenet5: IntegerProgram, layout: str
    ) -> None:
        assert float_bytes(lenet5) == 4 * 61706
        assert float_bytes(lenet5) >= 15 * len(program_bytes(lenet5, layout=layout))

    def test_fewer_bits_make_a_smaller_file(self) -> None:
        sizes = [len(program_bytes(lenet5_program(bits=bits, zeros=0), layout="dense")) for bits in (2, 4, 8)]
        assert sizes == sorted(sizes)
        assert sizes[1] < 61470 / 2 + 5000

    def test_table_names_every_form(self, lenet5: IntegerProgram) -> None:
        sizes = form_sizes(lenet5, with_yaml=False)
        assert [item.form for item in sizes] == ["float32", "npz dense", "npz coo", "npz csr", "npz csc"]
        assert as_table(sizes[:1]).splitlines()[-1] == "| float32 | 246824 | 1.0 |"

    def test_table_has_yaml_too(self) -> None:
        forms = {item.form: item.num_bytes for item in form_sizes(random_program(1))}
        assert forms["yaml csr"] == len(program_text(random_program(1), layout="csr"))


class TestYaml:
    def test_people_can_read_it(self) -> None:
        lines = program_text(lenet5_program(), layout="csr").splitlines()
        assert "- name: conv1" in lines
        assert "  output: {scale: 0.031, zero_point: 0, low: 0, high: 255}" in lines
        assert "      shape: [6, 1, 5, 5]" in lines
        assert any(line.startswith("      indptr: [0, ") for line in lines)

    def test_dense_weights_have_one_row_for_each_output_channel(self) -> None:
        program = random_program(0)
        record = yaml.safe_load(program_text(program, layout="dense"))
        weight = program.operations[1].arrays["weight"]
        assert record["operations"][1]["arrays"]["weight"] == {
            "shape": list(weight.shape),
            "data": weight.reshape(len(weight), -1).tolist(),
        }

    @pytest.mark.parametrize(
        ("find", "put", "words"),
        [
            ("version: 2", "version: 3", "format version is 3, expected 2 at most"),
            ("version: 2", "version: 0", "format version is 0, expected 2 at most"),
            ("size_step: 1", "size_step: -1", "size_step is -1, expected 0 to"),
            ("size_step: 1", "size: 1", "the file has no 'size_step'"),
            ("format: quantised network", "format: recipe", "not a quantised network"),
            ("layout: csr", "layout: bsr", "layout is 'bsr'; known"),
            ("indptr: [0, ", "indptr: [9, ", "index pointers range from 9"),
            ("weight_bits: 8", "weight_bits: 0x" + "f" * 6000, "more than 64 bits"),
            ("weight_bits: 8", "weight_bits: many", "weight_bits is 'many', expected an integer"),
            ("bias: [", "bias: [1.5, ", "not a list of int"),
            ("bias: [", "bias: [0x" + "f" * 6000 + ", ", "more than 64 bits"),
            ("kind: conv", "kind: conv3d", "kind is 'conv3d', known"),
            (
                "shape: [6, 1, 5, 5]",
                "shape: [1000000, 1000000]",
                "weight_zero_point does not have one value for each",
            ),
            ("shape: [6, 1, 5, 5]", "shape: [6, 1, 5000000, 5000000]", "numbers are declared"),
            ("shape: [6, 1, 5, 5]", "shape: [-6, 1, 5, 5]", "expected .O, I."),
            ("settings: {}", "settings: {1: 1}", "keys that are not strings"),
            ("operations:", "operation:", "no 'operations'"),
        ],
    )
    def test_edited_file_is_refused_in_one_line(self, tmp_path: Path, find: str, put: str, words: str) -> None:
        text = program_text(lenet5_program(zeros=0.99), layout="csr")
        assert find in text
        (tmp_path / "edited.yaml").write_text(text.replace(find, put, 1))
        with pytest.raises(CheckpointError, match=words) as caught:
            load_yaml(tmp_path / "edited.yaml")
        assert "\n" not in str(caught.value)
        assert str(caught.value).startswith(str(tmp_path / "edited.yaml"))

    @pytest.mark.parametrize("content", ["a: [1", "[" * 100000, "- 1", "", "\x00", "!!python/object:os.system {}"])
    def test_other_text_is_refused(self, tmp_path: Path, content: str) -> None:
        (tmp_path / "other.yaml").write_text(content)
        with pytest.raises(CheckpointError, match=r"not YAML|not a quantised network"):
            load_yaml(tmp_path / "other.yaml")

    def test_rows_that_refer_to_one_row_many_times_over_are_refused(self, tmp_path: Path) -> None:
        row = "[" + ",".join("0" * 20000) + "]"
        text = program_text(lenet5_program(), layout="dense")
        start = text.index("      data:\n")
        end = text.index("- name: pool1")
        rows = f"      data: [&a {row}" + ", *a" * 100000 + "]\n"
        (tmp_path / "bomb.yaml").write_text(text[:start] + rows + text[end:])
        with pytest.raises(CheckpointError, match="not YAML .has a reference to another part, .a."):
            load_yaml(tmp_path / "bomb.yaml")


class TestFloatYaml:
    @settings(max_examples=25)
    @given(
        values=st.sampled_from([np.float32, np.float64]).flatmap(
            lambda dtype: arrays(dtype, array_shapes(min_dims=0, max_dims=4, max_side=3, min_side=0))
        ),
        layout=st.sampled_from(LAYOUTS),
    )
    def test_any_array_comes_back(self, tmp_path_factory: Any, values: np.ndarray[Any, Any], layout: str) -> None:
        path = tmp_path_factory.mktemp("float") / "state.yaml"
        save_float_yaml({"layer.weight": values}, path, layout=layout)
        found = load_float_yaml(path)
        np.testing.assert_array_equal(found["layer.weight"], values, strict=True)

    def test_decimals_are_the_shortest(self, tmp_path: Path) -> None:
        save_float_yaml({"bias": np.array([0.1, -2e-7], np.float32)}, tmp_path / "state.yaml")
        text = (tmp_path / "state.yaml").read_text()
        assert "bias: type: float32 shape: [2] data: [0.1, -2.0e-07]" in " ".join(text.split())

    def test_zeros_are_left_out_of_sparse_layouts(self, tmp_path: Path) -> None:
        save_float_yaml({"weight": np.eye(3)}, tmp_path / "state.yaml", layout="csr")
        assert yaml.safe_load((tmp_path / "state.yaml").read_text())["arrays"]["weight"]["data"] == [1.0, 1.0, 1.0]

    def test_other_types_are_refused(self, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match="steps is int64, expected float32 or float64"):
            save_float_yaml({"steps": np.arange(3)}, tmp_path / "state.yaml")

    @pytest.mark.parametrize(
        ("find", "put", "words"),
        [
            ("float64", "complex64", "unknown type or a negative size"),
            ("shape: [2, 2]", "shape: [2, -2]", "unknown type or a negative size"),
            ("shape: [2, 2]", "shape: [2, 3000000000]", "numbers are declared"),
            ("shape: [2, 2]", "shape: [4]", "has 2 numbers, expected shape"),
            ("shape: [2, 2]", "shape: [2, 1]", "outside 0 to 0"),
            ("indices: [0, 1]", "indices: [0, 7]", "index 7"),
            ("indices: [0, 1]", "indices: [0, a]", "not a list of int"),
            ("arrays:", "array:", "no 'arrays'"),
        ],
    )
    def test_edited_file_is_refused(self, tmp_path: Path, find: str, put: str, words: str) -> None:
        path = tmp_path / "state.yaml"
        save_float_yaml({"weight": np.eye(2)}, path, layout="csr")
        assert find in path.read_text()
        path.write_text(path.read_text().replace(find, put, 1))
        with pytest.raises(CheckpointError, match=words):
            load_float_yaml(path)


class TestBadFiles:
    def test_file_of_another_network_is_refused(self, tmp_path: Path) -> None:
        program = random_program(0)
        save_program(program, tmp_path / "a.npz")
        save_yaml(program, tmp_path / "a.yaml")
        for load, name in ((load_program, "a.npz"), (load_yaml, "a.yaml")):
            with pytest.raises(CheckpointError, match="another network .fingerprint 0123456789ab, expected ffff"):
                load(tmp_path / name, fingerprint="f" * 64)

    @pytest.mark.parametrize("load", [load_program, load_yaml, load_float_yaml])
    def test_missing_file_is_refused(self, tmp_path: Path, load: Callable[[Path], Any]) -> None:
        with pytest.raises(CheckpointError, match=r"absent cannot be read: No such file.*; check the path"):
            load(tmp_path / "absent")

    def test_file_cut_off_anywhere_is_refused(self) -> None:
        data = program_bytes(random_program(3), layout="csr")
        for size in range(0, len(data), 97):
            refused(data[:size], "not a complete file of a quantised network")

    def test_no_changed_byte_goes_unnoticed(self) -> None:
        program = random_program(4)
        data = program_bytes(program, layout="csr")
        for at in range(0, len(data), 23):
            changed = data[:at] + bytes([data[at] ^ 0x55]) + data[at + 1 :]
            found = program_or_message(changed)
            if isinstance(found, str):
                assert "\n" not in found
            else:
                # Dates and rights in the archive's own records mean nothing.
                assert_same_program(found, program)

    @pytest.mark.parametrize("content", [b"", b"hello", b"\x93NUMPY\x01\x00", bytes(1000)])
    def test_other_files_are_refused(self, content: bytes) -> None:
        refused(content, "not a complete file of a quantised network")

    def test_npz_of_other_arrays_is_refused(self) -> None:
        buffer = io.BytesIO()
        np.savez(buffer, images=np.zeros(3))
        refused(buffer.getvalue(), "not a complete file")

    def test_members_of_another_type_are_refused(self) -> None:
        buffer = io.BytesIO()
        np.savez(buffer, header=np.zeros(3), streams=np.zeros(3, np.uint8))
        refused(buffer.getvalue(), "header.npy is not an array .N,. of bytes")

    def test_pickled_members_are_not_read(self) -> None:
        buffer = io.BytesIO()
        np.savez(buffer, header=np.array([{}], object), streams=np.zeros(3, np.uint8), allow_pickle=True)
        refused(buffer.getvalue(), "header.npy is not an array .N,. of bytes")

    def test_member_of_more_bytes_than_the_file_can_hold_is_not_unpacked(self) -> None:
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_BZIP2) as archive:
            archive.writestr("header.npy", bytes(10**7))
        refused(buffer.getvalue(), "declares 10000000 bytes")

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            (lambda header: header.update(version=3), "format version is 3, expected 2 at most"),
            (lambda header: header.update(version=True), "expected an integer"),
            (lambda header: header.update(format="zip"), "not a quantised network"),
            (lambda header: header.update(layout="bsr"), "layout is 'bsr'; known"),
            (lambda header: header.update(image_shape=[1, 28]), "expected .C, H, W."),
            (lambda header: header.update(operations=5), "operations is 5"),
            (lambda header: header["operations"].append("more"), "an operation: it has no 'name'"),
            (lambda header: header["operations"].pop(), "bytes of numbers, expected"),
            (lambda header: header["operations"][1].pop("output"), "'layer.1': it has no 'output'"),
            (lambda header: header["operations"][1]["output"].update(scale="wide"), "scale is 'wide', expected"),
            (lambda header: header["operations"][1].update(kind="sort"), "kind is 'sort', known"),
            (lambda header: header["operations"][1]["arrays"].update(bias=7), "not described as such"),
            (lambda header: header["operations"][1]["arrays"]["weight"].update(shape=[2**40, 9]), "of 1099511627776"),
            (lambda header: header["operations"][1]["arrays"]["weight"].pop("data"), "no 'data'"),
            (
                lambda header: header["operations"][1]["arrays"].update(weight_zero_point=[2**40, 0, 0, None, 0]),
                "1099511627776 numbers are declared",
            ),
        ],
    )
    def test_changed_header_is_refused(self, change: Callable[[dict[str, Any]], None], words: str) -> None:
        refused(with_header(program_bytes(random_program(5), layout="csr"), change), words)

    def test_header_that_is_no_json_is_refused(self) -> None:
        for content in (b"\xff\xfe", b"{", b"[" * 100000, b"1" * 5000):
            buffer = io.BytesIO()
            np.savez(buffer, header=np.frombuffer(content, np.uint8), streams=np.zeros(0, np.uint8))
            refused(buffer.getvalue(), "not JSON")

    def test_unknown_layout_is_refused(self, tmp_path: Path) -> None:
        for save in (save_program, save_yaml):
            with pytest.raises(ConfigError, match="layout is 'bsr'"):
                save(random_program(0), tmp_path / "a", layout="bsr")
        assert not list(tmp_path.iterdir())

    def test_unsound_program_is_not_written(self, tmp_path: Path) -> None:
        program = replace(random_program(0), outputs=("nowhere",))
        with pytest.raises(CheckpointError, match="nowhere"):
            save_program(program, tmp_path / "a.npz")
        assert not (tmp_path / "a.npz").exists()
