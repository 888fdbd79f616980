"""benchmarks/house.py: each counting rule on a tiny checkout with something planted."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from textwrap import dedent

import pytest

from benchmarks import house_code as code
from benchmarks import house_imports as imports
from benchmarks import house_twins as twins
from benchmarks.house import HouseConfig, count, measure
from benchmarks.house_source import House, inside, read_house, tracked_files
from utils.errors import DataError

TWIN = """
def read(path):
    lines = path.open()
    total = {first}
    for line in lines:
        total += {call}(line)
    return total
"""


def house(root: Path, **files: str) -> House:
    """Write and read files, each named `folder__file`, or `folder__FACE` for the face of a package."""
    return read_house(root, write(root, {f"{_path(name)}.py": text for name, text in files.items()}))


def _path(name: str) -> str:
    return name.replace("__", "/").replace("FACE", "__init__")


def write(root: Path, files: dict[str, str]) -> list[str]:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(dedent(text))
    return list(files)


def git(root: Path, *arguments: str) -> None:
    subprocess.run(["git", *arguments], cwd=root, check=True, capture_output=True)


def test_only_tracked_files_that_exist_count(tmp_path: Path) -> None:
    git(tmp_path, "init")
    write(tmp_path, {"kept.py": "", "gone.py": "", "loose.py": ""})
    git(tmp_path, "add", "kept.py", "gone.py")
    (tmp_path / "gone.py").unlink()
    assert tracked_files(tmp_path) == ["kept.py"]


def test_folder_without_git_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    with pytest.raises(DataError, match="no git checkout"):
        tracked_files(tmp_path)
    with pytest.raises(DataError, match="no such folder"):
        tracked_files(tmp_path / "none")


def test_lines_count_blank_ones_and_leave_out_tests_benchmarks_and_examples(tmp_path: Path) -> None:
    files = house(tmp_path, utils__a="x = 1\n\n\ny = 2\n", tests__t="1\n", benchmarks__b="1\n", examples__e="1\n")
    assert sum(source.num_lines for source in inside(files).values()) == 4


def test_files_of_one_table_are_alike_and_faces_do_not_count(tmp_path: Path) -> None:
    table = "from m.a import A\nfrom m.b import B\nfrom m.c import C\nTABLE = {'a': A, 'b': B, 'c': (C, 1)}\n"
    leaves = {f"m__{name}": f"{name.upper()} = 1\n" for name in "abcd"}
    files = house(tmp_path, **leaves, m__table=table, m__FACE="from m.d import D\n")
    assert imports.unlike_files(files) == {"m": 3}  # a, b and c as one; d; table


def test_two_files_in_one_table_are_still_unlike(tmp_path: Path) -> None:
    table = "from m.a import A\nfrom m.b import B\nTABLE = {'a': A, 'b': B}\n"
    assert imports.unlike_files(house(tmp_path, m__a="A = 1\n", m__b="B = 1\n", m__table=table)) == {"m": 3}


def test_longest_chain_follows_imports_at_the_top_only(tmp_path: Path) -> None:
    files = house(
        tmp_path,
        pruning__a="from pruning.b import B\n",
        pruning__b="import pruning.c\nimport torch\n",
        pruning__c="def f():\n    from pruning.d import D\n",
        pruning__d="if TYPE_CHECKING:\n    from pruning.a import A\n",
        utils__low="import json\n",
    )
    graph = imports.package_graph(files, "pruning")
    assert imports.longest_chain(graph) == ["pruning.a", "pruning.b", "pruning.c"]


def test_circle_counts_a_floor_for_each_of_its_nodes() -> None:
    assert len(imports.longest_chain({"a": {"b"}, "b": {"c"}, "c": {"b", "d"}, "d": set()})) == 4


def test_floors_between_folders_merge_what_a_folder_contains(tmp_path: Path) -> None:
    files = house(
        tmp_path,
        pruning__FACE="from pruning.top import T\n",
        pruning__top="from pruning.cut.b import B\n",
        pruning__cut__b="from pruning.cut.a import A\n",
        pruning__cut__a="from pruning.ids.i import I\n",
        pruning__ids__i="",
    )
    folders = imports.folder_graph(files, "pruning")
    assert imports.longest_chain(folders) == ["pruning/top.py", "pruning/cut", "pruning/ids"]


def test_planted_circle_is_found(tmp_path: Path) -> None:
    files = house(
        tmp_path, utils__a="from utils import b\n", utils__b="from . import c\n", utils__c="import utils.a\n"
    )
    assert imports.circles(imports.import_graph(files)) == [["utils.a", "utils.b", "utils.c"]]


@pytest.mark.parametrize("late", ["def f():\n    import utils.a\n", "if TYPE_CHECKING:\n    import utils.a\n"])
def test_late_import_makes_no_circle(tmp_path: Path, late: str) -> None:
    files = house(tmp_path, utils__a="from utils import b\n", utils__b=late)
    assert imports.circles(imports.import_graph(files)) == []


@pytest.mark.parametrize(
    ("importer", "line", "target"),
    [
        ("utils/planted.py", "from models.target import X", "models/target.py"),
        ("engine/deep/planted.py", "def f():\n    import pruning.target", "pruning/target.py"),
        ("pruning/planted.py", "from quantization.target import X", "quantization/target.py"),
        ("pruning/planted.py", "from tasks.target import X", "tasks/target.py"),
        ("deploy/planted.py", "if TYPE_CHECKING:\n    from tasks.target import X", "tasks/target.py"),
        ("deploy/planted.py", "from commands.target import X", "commands/target.py"),
        ("commands/planted.py", "import train", "train.py"),
        ("val.py", "from train import run", "train.py"),
        ("models/planted.py", "from tests.target import X", "tests/target.py"),
    ],
)
def test_planted_upward_import_is_found(tmp_path: Path, importer: str, line: str, target: str) -> None:
    files = read_house(tmp_path, write(tmp_path, {importer: line, target: ""}))
    name = target.removesuffix(".py").replace("/", ".")
    assert imports.upward_imports(files) == [f"{importer} imports {name}"]


def test_import_to_the_left_is_no_finding(tmp_path: Path) -> None:
    files = house(
        tmp_path, train="import commands.a", commands__a="import tasks.a, pruning.a", tasks__a="", pruning__a=""
    )
    assert imports.upward_imports(files) == []


def test_small_file_with_one_reader_is_found_and_tests_are_no_readers(tmp_path: Path) -> None:
    files = house(
        tmp_path,
        utils__small="X = 1\n",
        utils__reader="def f():\n    from utils.small import X\n",
        utils__long="x = 1\n" * 80,
        utils__both="Y = 1\n",
        train="from utils.long import x\nfrom utils.both import Y\n",
        val="from utils.both import Y\n",
        tests__t="from utils.small import X\n",
    )
    assert imports.lone_small_files(files) == ["utils/small.py (1 lines) is read by utils/reader.py"]


def test_file_behind_a_face_is_read_by_those_who_ask_the_face(tmp_path: Path) -> None:
    files = house(
        tmp_path,
        utils__FACE="from utils.one import X\nfrom utils.two import Y\n",
        utils__one="X = 1\n",
        utils__two="Y = 1\n",
        train="from utils import X, Y\n",
        val="from utils import Y\n",
    )
    assert imports.lone_small_files(files) == ["utils/one.py (1 lines) is read by train.py"]


@pytest.mark.parametrize(
    ("text", "places"),
    [
        ("A = {'.onnx': 1, '_ncnn_model': 2, '.engine': 3}", 1),
        ("A = Literal['onnx', 'ncnn', 'openvino']", 1),
        ("A = (Format(suffix='.onnx'), Format(suffix='.engine'), Format(suffix='.torchscript'))", 1),
        ("class A(Enum):\n    ONNX = 'onnx'\n    NCNN = 'ncnn'\n    ENGINE = 'engine'", 1),
        ("def f(x):\n    return x in ('onnx', 'ncnn', 'tensorrt')\nB = ['onnx', 'ncnn', 'openvino']", 2),
        ("A = {'onnx': ('.onnx', 'onnx'), 'ncnn': ()}", 0),
        ("A = ['.onnx', '.pt', '.yaml']", 0),
    ],
)
def test_list_of_three_formats_is_a_place(tmp_path: Path, text: str, places: int) -> None:
    assert len(code.format_lists(house(tmp_path, deploy__formats=text))) == places


def test_formats_are_recognised_through_imported_constants(tmp_path: Path) -> None:
    files = house(
        tmp_path,
        deploy__table="""
            from deploy import engine
            from deploy.ncnn import FORMAT as NCNN
            from deploy.onnx import ONNX
            FORMATS = {NCNN: 1, engine.FORMAT: 2, "onnx": ONNX, "torchscript": 3}
            """,
        deploy__ncnn__FACE="from deploy.ncnn.runtime import FORMAT\n",
        deploy__ncnn__runtime="FORMAT = '_ncnn_model'\n",
        deploy__engine="FORMAT: str = '.engine'\n",
        deploy__onnx="ONNX = Format(suffix='.onnx')\n",
    )
    assert code.format_lists(files) == ["deploy/table.py:5"]


def test_doors_are_public_functions_and_classes_that_answer_with_an_evaluation(tmp_path: Path) -> None:
    files = house(
        tmp_path,
        engine__door="""
            def judge() -> "Evaluation | None": ...
            def _hidden() -> Evaluation: ...
            def other() -> EvaluationSettings: ...
            class Evaluator:
                def __call__(self) -> ClassifierEvaluation: ...
                def on(self) -> Evaluation: ...
            class Describes(Protocol):
                def judge(self) -> Evaluation: ...
            """,
        commands__val="def val() -> Evaluation: ...\ndef again() -> Evaluation: ...\n",
        val="def val() -> Evaluation: ...\n",
        tests__t="def judge() -> Evaluation: ...\n",
    )
    assert code.evaluation_doors(files) == [
        "engine/door.py:2 judge",
        "engine/door.py:6 Evaluator.__call__",
        "commands/val.py:2 again",
    ]


def test_training_loop_calls_backward_and_step_in_one_class_or_among_plain_functions(tmp_path: Path) -> None:
    files = house(
        tmp_path,
        engine__trainer="""
            class Trainer:
                def one(self): self.scaler.scale(loss).backward()
                def two(self): self.scaler.step(self.optimizer)
            class Schedule:
                def two(self): self.schedule.step()
            """,
        engine__plain="def one(): loss.backward()\ndef two(): optimizer.step()\n",
        engine__taylor="def one(): loss.backward()\n",
        examples__e="def one():\n    loss.backward()\n    optimizer.step()\n",
    )
    assert code.training_loops(files) == ["engine/trainer.py Trainer", "engine/plain.py"]


def test_planted_twin_is_found_whatever_its_names_and_constants(tmp_path: Path) -> None:
    files = house(
        tmp_path, engine__a=TWIN.format(first=0, call="len"), deploy__b=TWIN.format(first="1.5", call="size")
    )
    assert twins.twins(files) == ["engine/a.py:2 read = deploy/b.py:2 read"]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (TWIN, "def read(path):\n    with path.open() as f:\n        x = f.read()\n    y = x\n    return y\n"),
        (TWIN, TWIN.replace("read", "load")),
        ("def read(p):\n    x = p\n    return x\n", "def read(p):\n    y = p\n    return y\n"),
    ],
    ids=["another shape", "another name", "too short"],
)
def test_functions_of_other_shape_or_name_and_short_ones_are_no_twins(tmp_path: Path, one: str, other: str) -> None:
    texts = [text.format(first=0, call="len") for text in (one, other)]
    assert twins.twins(house(tmp_path, engine__a=texts[0], deploy__b=texts[1])) == []


def test_function_of_a_classifier_file_under_the_name_of_another_is_found(tmp_path: Path) -> None:
    files = house(
        tmp_path,
        deploy__classifier__export="def job(): ...\nclass A:\n    def write(self): ...\n",
        deploy__export="def job(): ...\ndef write(): ...\n",
        deploy__slim="def job(): ...\n",
    )
    assert twins.classifier_doubles(files) == [
        "deploy/classifier/export.py:1 job = deploy/export.py:1 job",
        "deploy/classifier/export.py:1 job = deploy/slim.py:1 job",
    ]


def test_long_files_and_functions_are_found_with_their_sizes(tmp_path: Path) -> None:
    body = "    x = 1\n"
    files = house(tmp_path, utils__a="x = 1\n" * 401, utils__b=f"def f():\n{body * 60}\ndef g():\n{body * 59}")
    assert code.long_files(files) == ["utils/a.py (401)"]
    assert code.long_functions(files) == ["utils/b.py:1 f (61)"]


def test_docstrings_and_attributes_that_begin_with_of_or_what_are_found(tmp_path: Path) -> None:
    text = '''
        """Of a module."""
        class A:
            """Offers what is needed.

            Attributes:
                one, two: What they are.
                three: Ways of what.
            """
            def f(self):
                """What it does."""
        '''
    assert code.bad_starts(house(tmp_path, utils__a=text)) == [
        "utils/a.py:2 Of a module.",
        "utils/a.py:4 one, two: What they are.",
        "utils/a.py:11 What it does.",
    ]


def test_table_and_json_show_every_count(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    git(tmp_path, "init")
    write(tmp_path, {"utils/a.py": "import models.b\n", "models/b.py": "import utils.a\n"})
    git(tmp_path, "add", ".")
    measure(HouseConfig(root=str(tmp_path)))
    table = capsys.readouterr().out
    measure(HouseConfig(root=str(tmp_path), json=True))
    rows = json.loads(capsys.readouterr().out)
    assert len(rows) == len(count(read_house(tmp_path, tracked_files(tmp_path))))
    assert all(f"| {row['what']} | {row['measured']} |" in table for row in rows)
    assert "| upward imports | 1 | at most 0 |" in table
    assert "  models.b <-> utils.a" in table
