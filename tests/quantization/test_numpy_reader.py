"""The reader without torch: every operation by hand, convolutions against a slow loop, and the command."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from storage_programs import (
    CONV,
    POOL,
    affine,
    ints,
    lenet5_program,
    program_of,
    random_images,
    random_program,
    weighted,
)
from tiny import ROOT

from quantization.program.program import Affine, IntArray, IntegerProgram, Operation
from quantization.storage.arithmetic import rescale
from quantization.storage.binary import save_program
from quantization.storage.reader import dequantise, quantise, run, run_integers
from quantization.storage.text import save_yaml
from utils.errors import DataError

# Zero is 10, so centred numbers differ from stored ones.
SOURCE = affine(zero_point=10)
IMAGE = np.array([[[[11, 12, 13], [14, 15, 16], [17, 18, 30]]]])  # centred: 1 ... 8, 20
HALF = {"multiplier": ints(1), "shift": ints(1)}


def of(kind: str, **fields: Any) -> IntegerProgram:
    """One operation on the image, `other` being the image upside down."""
    inputs = fields.pop("inputs", ("input",))
    turn = Operation(
        name="other",
        kind="slice",
        inputs=("input",),
        output=SOURCE,
        settings={"axis": 2, "start": 1, "stop": 3, "step": 1},
    )
    last = Operation(
        name="last", kind=kind, inputs=inputs, output=fields.pop("output", affine(zero_point=100)), **fields
    )
    return program_of(turn, last, image_shape=(1, 3, 3), source=SOURCE)


def result(program: IntegerProgram) -> list[Any]:
    """Of the only image, its only channel if there is one."""
    return run_integers(program, IMAGE)[0][0].squeeze(0).tolist()


def test_rescale_rounds_halves_up() -> None:
    # 3 / 2, -3 / 2, 5 / 4, -5 / 4, 6 / 4, -6 / 4
    found = rescale(ints(3, -3, 5, -5, 6, -6), ints(1), ints(1, 1, 2, 2, 2, 2))
    assert found.tolist() == [2, -1, 1, -1, 2, -1]


def test_convolution_by_hand_with_padding_and_zero_points() -> None:
    conv = Operation(
        name="conv",
        kind="conv",
        inputs=("input",),
        output=affine(zero_point=100, high=160),
        settings={**CONV, "padding": (1, 0), "stride": (2, 1)},
        arrays={
            # Less 3: 1 0 -1 over 2 0 0.
            "weight": np.array([[[[4, 3, 2], [5, 3, 3]]]]),
            "weight_zero_point": ints(3),
            "bias": ints(5),
            "multiplier": ints(3),
            "shift": ints(2),
        },
        weight_scales=np.array([0.1]),
        weight_bits=4,
    )
    # Rows of the padded image: 0, 1 2 3, 4 5 6, 7 8 20, 0. Windows at rows 0 and 2:
    # 2 * 1 = 2, +5, times 3/4 = 5.25 -> 5. (4 - 6) + 2 * 7 = 12, +5, times 3/4 = 12.75 -> 13.
    found = run_integers(program_of(conv, image_shape=(1, 3, 3), source=SOURCE), IMAGE)[0]
    assert found.tolist() == [[[[105], [113]]]]


def slow_convolution(operation: Operation, maps: IntArray, source: Affine) -> IntArray:
    """Number by number, in Python's own integers."""
    arrays, setting = operation.arrays, operation.settings
    weight = arrays["weight"]
    (sh, sw), (ph, pw), (dh, dw) = (setting[name] for name in ("stride", "padding", "dilation"))  # type: ignore[misc]
    batch, _, height, width = maps.shape
    num_out, per_group, rows, columns = weight.shape
    out_per_group = num_out // setting["groups"]  # type: ignore[operator]
    sizes = ((height + 2 * ph - dh * (rows - 1) - 1) // sh + 1, (width + 2 * pw - dw * (columns - 1) - 1) // sw + 1)
    out = np.zeros((batch, num_out, *sizes), np.int64)
    for b, o, y, x in itertools.product(range(batch), range(num_out), range(sizes[0]), range(sizes[1])):
        total = int(arrays["bias"][o])
        for i, r, c in itertools.product(range(per_group), range(rows), range(columns)):
            at_y, at_x = y * sh - ph + r * dh, x * sw - pw + c * dw
            if 0 <= at_y < height and 0 <= at_x < width:
                channel = o // out_per_group * per_group + i
                number = int(maps[b, channel, at_y, at_x]) - source.zero_point
                total += number * (int(weight[o, i, r, c]) - int(arrays["weight_zero_point"][o]))
        shift = int(arrays["shift"][o])
        scaled = (total * int(arrays["multiplier"][o]) + 2 ** (shift - 1)) // 2**shift
        out[b, o, y, x] = min(max(scaled + operation.output.zero_point, operation.output.low), operation.output.high)
    return out


@settings(max_examples=15)
@given(
    seed=st.integers(0, 10**6),
    groups=st.integers(1, 3),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    stride=st.tuples(st.integers(1, 2), st.integers(1, 3)),
    padding=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    dilation=st.tuples(st.integers(1, 2), st.integers(1, 2)),
)
def test_any_convolution_is_that_of_a_slow_loop(
    seed: int, groups: int, kernel: Any, stride: Any, padding: Any, dilation: Any
) -> None:
    rng = np.random.default_rng(seed)
    weight = rng.integers(-8, 8, (2 * groups, 2, *kernel))
    numbers = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    conv = weighted("conv", "input", weight, output=affine(zero_point=90), settings=numbers, bits=4, rng=rng)
    program = program_of(conv, image_shape=(2 * groups, 6, 5), source=affine(zero_point=77))
    images = random_images(program, seed=seed, count=1)
    np.testing.assert_array_equal(
        run_integers(program, images)[0], slow_convolution(conv, images, program.operations[0].output)
    )


def test_linear_layer_by_hand() -> None:
    flat = Operation(name="flat", kind="flatten", inputs=("input",), output=SOURCE, settings={"start_axis": 1})
    linear = Operation(
        name="fc",
        kind="linear",
        inputs=("flat",),
        output=affine(zero_point=100, low=95, high=110),
        arrays={
            "weight": np.array([[1] * 9, [-1] * 9, [0] * 8 + [1]]),
            "weight_zero_point": ints(0, 0, 0),
            "bias": ints(0, 0, -7),
            "multiplier": ints(1, 1, 1),
            "shift": ints(3, 3, 2),
        },
        weight_bits=8,
    )
    # Sums 56, -56 and 20 - 7 = 13: 7, -7 (clamped at 95) and 3.25.
    found = run_integers(program_of(flat, linear, image_shape=(1, 3, 3), source=SOURCE), IMAGE)[0]
    assert found.tolist() == [[107, 95, 103]]


def test_lookup_counts_from_the_lowest_integer() -> None:
    table = (np.arange(256) * 7) % 256
    assert result(of("lookup", output=affine(), arrays={"table": table}))[0] == [77, 84, 91]
    shifted = program_of(
        Operation(name="look", kind="lookup", inputs=("input",), output=affine(), arrays={"table": ints(9, 8, 7, 6)}),
        image_shape=(1, 1, 2),
        source=affine(low=-2, high=1),
    )
    assert run_integers(shifted, np.array([[[[-2, 1]]]]))[0].tolist() == [[[[9, 6]]]]


def test_addition_weighs_its_inputs() -> None:
    # (centred * 4 + centred * 2) / 4
    program = of("add", inputs=("input", "input"), arrays={"factor": ints(4, 2), "shift": ints(2)})
    assert result(program) == [[102, 103, 105], [106, 108, 109], [111, 112, 130]]


def test_concat_rescales_each_input() -> None:
    program = of(
        "concat",
        inputs=("input", "other"),
        settings={"axis": 2},
        arrays={"multiplier": ints(2, 4), "shift": ints(1, 1)},
    )
    assert result(program) == [
        [101, 102, 103],
        [104, 105, 106],
        [107, 108, 120],
        [108, 110, 112],
        [114, 116, 140],
    ]


def test_multiplication_takes_centred_numbers_and_clamps() -> None:
    program = of("multiply", inputs=("input", "input"), arrays=HALF)
    # 1 4 9, 16 25 36, 49 64 400, halved, halves up.
    assert result(program) == [[101, 102, 105], [108, 113, 118], [125, 132, 255]]


def test_multiplication_broadcasts_a_gate_over_the_map() -> None:
    gate = Operation(
        name="gate",
        kind="mean",
        inputs=("input",),
        output=affine(),
        settings={"kernel": (0, 0), "stride": (1, 1)},
        arrays={"multiplier": ints(1), "shift": ints(3)},
    )
    times = Operation(name="times", kind="multiply", inputs=("input", "gate"), output=affine(), arrays=HALF)
    # The sum of 56 makes a gate of 7.
    found = run_integers(program_of(gate, times, image_shape=(1, 3, 3), source=SOURCE), IMAGE)[0]
    assert found[0, 0].tolist() == [[4, 7, 11], [14, 18, 21], [25, 28, 70]]


def test_max_pool_pads_with_the_lowest_integer() -> None:
    program = of("max_pool", output=SOURCE, settings={**POOL, "padding": (1, 1)})
    assert result(program) == [[11, 13], [17, 30]]


def test_mean_of_windows_and_of_the_whole_map() -> None:
    windows = of(
        "mean", settings={"kernel": (2, 2), "stride": (1, 1)}, arrays={"multiplier": ints(1), "shift": ints(2)}
    )
    # 12 / 4, 16 / 4, 24 / 4, 39 / 4
    assert result(windows) == [[103, 104], [106, 110]]
    whole = of(
        "mean", settings={"kernel": (0, 0), "stride": (1, 1)}, arrays={"multiplier": ints(7282), "shift": ints(16)}
    )
    # 56 / 9 = 6.2
    assert result(whole) == [[106]]


def test_rescale_puts_numbers_on_another_scale() -> None:
    assert result(of("rescale", arrays=HALF)) == [[101, 101, 102], [102, 103, 103], [104, 104, 110]]


def test_numbers_are_moved() -> None:
    assert result(of("upsample", output=SOURCE, settings={"scale": (1, 2)}))[0] == [11, 11, 12, 12, 13, 13]
    every_other = {"axis": 3, "start": 0, "stop": 2**40, "step": 2}
    assert result(of("slice", output=SOURCE, settings=every_other)) == [[11, 13], [14, 16], [17, 30]]
    assert result(of("permute", output=SOURCE, settings={"axes": (0, 1, 3, 2)}))[0] == [11, 14, 17]
    flat = run_integers(of("flatten", output=SOURCE, settings={"start_axis": 1}), IMAGE)[0]
    assert flat.tolist() == [[11, 12, 13, 14, 15, 16, 17, 18, 30]]


def test_real_numbers_are_rounded_half_up_and_clamped() -> None:
    taken = affine(scale=0.5, zero_point=3, low=0, high=7)
    found = quantise(np.array([0.0, 0.25, -0.25, 0.24, -9.0, 9.0]), taken)
    assert found.tolist() == [3, 4, 3, 3, 0, 7]
    assert dequantise(found, taken).tolist() == [0.0, 0.5, 0.0, 0.0, -1.5, 2.0]


def test_run_gives_each_output_in_real_numbers() -> None:
    program = replace(of("rescale", arrays=HALF), outputs=("last", "input"))
    halved, same = run(program, (IMAGE - 10) * SOURCE.scale)
    assert halved[0, 0, 2, 2] == pytest.approx(10 * 0.05)
    np.testing.assert_allclose(same, (IMAGE - 10) * SOURCE.scale)


@settings(max_examples=5)
@given(seed=st.integers(0, 10**6))
def test_many_images_give_what_each_gives_alone(seed: int) -> None:
    program = random_program(seed)
    images = random_images(program, count=19)
    together = run_integers(program, images)
    for at in (0, 15, 16, 18):
        alone = run_integers(program, images[at : at + 1])
        for one, other in zip(alone, together, strict=True):
            np.testing.assert_array_equal(one[0], other[at])


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (np.zeros((2, 3, 3)), r"shape \(2, 3, 3\), expected \(B, C, H, W\)"),
        (np.zeros((0, 1, 3, 3)), "at least one image"),
        (np.zeros((1, 2, 3, 3)), r"channels first, expected \(1, 3, 3\)"),
        (np.full((1, 1, 3, 3), np.nan), "NaN"),
        (np.full((1, 1, 3, 3), np.inf), "infinity"),
        (np.zeros((1, 1, 4, 3)), "averages over a whole map"),
    ],
)
def test_images_that_do_not_fit_are_refused(images: Any, words: str) -> None:
    program = of("mean", settings={"kernel": (0, 0), "stride": (1, 1)}, arrays=HALF)
    with pytest.raises(DataError, match=words):
        run(program, images)


def test_integers_out_of_range_are_refused() -> None:
    program = of("rescale", arrays=HALF)
    with pytest.raises(DataError, match="integers of images are 0 to 256, expected 0 to 255"):
        run_integers(program, IMAGE * 0 + np.array([0, 1, 256]))
    with pytest.raises(DataError, match="images are float64, expected integers"):
        run_integers(program, IMAGE / 2)


def test_maps_of_another_size_run_where_nothing_depends_on_it() -> None:
    larger = np.full((1, 1, 5, 7), 12)
    assert run_integers(of("rescale", arrays=HALF), larger)[0].shape == (1, 1, 5, 7)


def in_new_process(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, check=False, timeout=120
    )


def test_lenet5_is_read_and_run_without_torch(tmp_path: Path) -> None:
    for layout in ("dense", "csr"):
        save_program(lenet5_program(), tmp_path / f"{layout}.npz", layout=layout)
    save_yaml(lenet5_program(), tmp_path / "lenet5.yaml", layout="csc")
    code = """
import sys
import numpy as np
from quantization.storage.binary import load_program
from quantization.storage.reader import run
from quantization.storage.sizes import form_sizes
from quantization.storage.text import load_yaml
images = np.random.default_rng(0).random((3, 1, 28, 28), dtype=np.float32)
folder = sys.argv[1]
programs = [load_program(f"{folder}/{layout}.npz") for layout in ("dense", "csr")]
programs.append(load_yaml(f"{folder}/lenet5.yaml"))
first, *others = [run(program, images)[0] for program in programs]
assert first.shape == (3, 10) and len(np.unique(first)) > 5
assert all((other == first).all() for other in others)
assert not [name for name in sys.modules if name.split(".")[0] in ("torch", "tyro", "cv2")]
"""
    done = in_new_process("-c", code, str(tmp_path))
    assert done.returncode == 0, done.stderr


def test_command_writes_predictions_as_json(tmp_path: Path) -> None:
    program = lenet5_program()
    save_program(program, tmp_path / "lenet5.npz", layout="coo")
    images = np.random.default_rng(1).random((4, 1, 28, 28), dtype=np.float32)
    np.savez(tmp_path / "images.npz", images=images)
    done = in_new_process("-m", "quantization.storage", str(tmp_path / "lenet5.npz"), str(tmp_path / "images.npz"))
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    expected = run(program, images)[0]
    assert found == {"classes": expected.argmax(1).tolist(), "outputs": expected.tolist()}


def test_command_tells_of_damaged_pictures_in_one_line(tmp_path: Path) -> None:
    save_program(lenet5_program(), tmp_path / "lenet5.npz")
    path = tmp_path / "images.npz"
    np.savez_compressed(path, images=np.random.default_rng(1).integers(0, 2, (4, 1, 28, 28)).astype(np.float32))
    whole = path.read_bytes()
    path.write_bytes(whole[:120] + bytes(20) + whole[140:])  # within the deflated numbers
    done = in_new_process("-m", "quantization.storage", str(tmp_path / "lenet5.npz"), str(path))
    assert done.returncode == 2
    assert "no array 'images' can be read (Error -3 while decompressing" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("network", "finding"),
    [
        ("other.npz", "not a complete file of a quantised network"),
        (".", "give the network.npz in it"),
        ("lenet5.npz", "images nowhere.npz do not exist; check the path"),
        (
            "maps.npz",
            "as detectors do, expected one row of scores; for a detector, give its folder to val.py or detect.py",
        ),
    ],
)
def test_command_tells_a_mistake_in_one_line(tmp_path: Path, network: str, finding: str) -> None:
    program = lenet5_program()
    save_program(program, tmp_path / "lenet5.npz")
    save_program(replace(program, outputs=(program.operations[1].name,)), tmp_path / "maps.npz")
    (tmp_path / "other.npz").write_bytes(b"other")
    done = in_new_process("-m", "quantization.storage", str(tmp_path / network), "nowhere.npz")
    assert done.returncode == 2
    assert finding in done.stderr
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.splitlines()) == 1
