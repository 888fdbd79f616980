"""Flags, configuration files and exit codes, on a small configuration."""

from __future__ import annotations

import errno
import io
import shlex
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from utils.config.cli import command_line, config_from_values, parse, run_script
from utils.errors import ConfigError, DataError


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of a test."""

    weights: tuple[str, ...]
    epochs: int = 3
    rate: float | None = None
    sizes: tuple[int, ...] = (640,)
    fast: bool = False
    mode: Literal["a", "b"] = "a"
    device: str = ""
    resume: str = ""
    folder: Path = Path("runs")
    limits: tuple[str, ...] = field(default=(), metadata={"adds_up": True})

    def __post_init__(self) -> None:
        if self.epochs < 1:
            raise ConfigError(f"--epochs {self.epochs}: expected at least 1")


@dataclass(frozen=True, kw_only=True)
class WithPreset(Config):
    """Settings with recipes."""

    preset: str = ""


def parsed(*argv: str) -> Config:
    return parse(Config, argv, bare={"--resume": "latest"})


def exit_code(main: Any, *argv: str) -> int | str | None:
    with pytest.raises(SystemExit) as caught:
        run_script(main, Config, argv=argv)
    return caught.value.code


def test_flags_have_dashes_or_underscores() -> None:
    config = parsed("--weights", "a.pt", "b.pt", "--sizes", "320", "640", "--fast")
    assert (config.weights, config.sizes, config.fast) == (("a.pt", "b.pt"), (320, 640), True)


@pytest.mark.parametrize(
    "argv",
    [
        ("--limits", "a=1", "b=1", "--epochs", "5", "--limits", "c=1"),
        ("--limits", "a=1", "--limits=b=1", "--epochs=5", "--limits", "c=1"),
        ("--limits=a=1", "--epochs", "5", "--limits", "b=1", "c=1"),
    ],
)
def test_flag_that_adds_up_may_be_given_several_times(argv: tuple[str, ...]) -> None:
    config = parsed("--weights", "a.pt", *argv)
    assert (config.weights, config.limits, config.epochs) == (("a.pt",), ("a=1", "b=1", "c=1"), 5)


def test_other_flag_for_several_texts_given_twice_takes_the_later_ones() -> None:
    assert parsed("--weights", "a.pt", "b.pt", "--epochs", "5", "--weights", "c.pt").weights == ("c.pt",)


def test_flag_for_several_numbers_given_twice_takes_the_later_ones() -> None:
    assert parsed("--weights", "a.pt", "--sizes", "320", "--sizes", "64", "96").sizes == (64, 96)


@pytest.mark.parametrize(
    ("argv", "resume"),
    [(("--resume",), "latest"), (("--resume", "--fast"), "latest"), (("--resume", "x/last.pt"), "x/last.pt")],
)
def test_bare_flag_takes_its_own_value(argv: tuple[str, ...], resume: str) -> None:
    assert parsed("--weights", "a.pt", *argv).resume == resume


def test_flags_override_the_file_and_the_file_the_defaults(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("weights: [a.pt]\nepochs: 7\nsizes: [320, 320]\nrate: 1e-3\nfast: true\n")
    config = parsed("--config", str(path), "--epochs", "9")
    assert config == Config(weights=("a.pt",), epochs=9, sizes=(320, 320), rate=0.001, fast=True)
    assert parsed(f"--config={path}").epochs == 7


def test_file_may_leave_what_is_required_to_the_flags(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("epochs: 7\n")
    assert parsed("--config", str(path), "--weights", "a.pt") == Config(weights=("a.pt",), epochs=7)
    assert exit_code(lambda config: None, "--config", str(path)) == 2


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("epoch: 3", "unknown key 'epoch'; known: weights, epochs, rate"),
        ("epochs: many", "epochs is 'many', expected an integer"),
        ("epochs: true", "epochs is True, expected an integer"),
        ("epochs: 2.5", "epochs is 2.5, expected an integer"),
        ("fast: 1", "fast is 1, expected true or false"),
        ("mode: c", "mode is 'c', expected one of a, b"),
        ("rate: fast", "rate is 'fast', expected a number or nothing"),
        ("sizes: [a]", r"sizes is \['a'\], expected an integer"),
        ("device: [0]", r"device is \[0\], expected text"),
    ],
)
def test_value_of_the_wrong_kind_names_file_key_and_expectation(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(line)
    with pytest.raises(ConfigError, match=f"c.yaml: {message}"):
        parsed("--config", str(path))


def test_config_without_a_file_is_refused() -> None:
    with pytest.raises(ConfigError, match="--config has no value; give a YAML file"):
        parsed("--config")


def test_plain_values_become_the_types_of_the_fields() -> None:
    values = {"weights": "a.pt", "sizes": 320, "device": 0, "rate": 1, "folder": "x", "mode": "b"}
    config = config_from_values(Config, values, where="here")
    assert config == Config(weights=("a.pt",), sizes=(320,), device="0", rate=1.0, folder=Path("x"), mode="b")
    with pytest.raises(ConfigError, match="here has no 'weights'; add it"):
        config_from_values(Config, {}, where="here")


def test_users_mistake_is_one_line_and_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    def main(config: Config) -> None:
        raise DataError("file x: broken; mend it")

    assert exit_code(main, "--weights", "a.pt") == 2
    assert capsys.readouterr().err == "error: file x: broken; mend it\n"


@pytest.mark.parametrize("argv", [("--nope",), ("--epochs", "many"), ("--epochs", "0"), ("--mode", "c")])
def test_wrong_flag_exits_with_2(argv: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(lambda config: None, "--weights", "a.pt", *argv) == 2
    assert argv[0] in capsys.readouterr().err


def test_lines_with_names_that_are_not_text_of_the_terminal_are_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(written, encoding="utf-8", errors="strict"))

    def main(config: Config) -> None:
        raise ConfigError("caf\udce9.jpg is no image")

    assert exit_code(main, "--weights", "a") == 2
    sys.stderr.flush()
    assert written.getvalue() == b"error: caf\\udce9.jpg is no image\n"


def test_flags_override_the_file_and_the_file_the_preset(tmp_path: Path) -> None:
    recipe, file = tmp_path / "recipe.yaml", tmp_path / "file.yaml"
    recipe.write_text("epochs: 5\nrate: 0.1\nfast: true\nweights: a.pt\nsizes: [64]\n")
    file.write_text(f"rate: 0.2\nsizes: [96]\npreset: {recipe}\n")
    for argv in (["--preset", str(recipe), "--config", str(file)], [f"--preset={recipe}", f"--config={file}"]):
        config = parse(WithPreset, [*argv, "--sizes", "128"], bare={})
        assert (config.epochs, config.rate, config.sizes, config.fast) == (5, 0.2, (128,), True)
        assert config.preset == str(recipe)
    assert parse(WithPreset, ["--config", str(file)], bare={}).epochs == 5  # a file may name a preset
    assert not parse(WithPreset, ["--preset", str(recipe), "--no-fast"], bare={}).fast


def test_unknown_preset_and_its_unknown_keys_are_named(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match="--preset fast: no such recipe; choose from full, quick, or give a YAML file"
    ):
        parse(WithPreset, ["--preset", "fast"], bare={})
    (tmp_path / "own.yaml").write_text("epoch: 5\n")
    with pytest.raises(ConfigError, match=r"own.yaml: unknown key 'epoch'; known: weights, epochs, rate"):
        parse(WithPreset, ["--preset", str(tmp_path / "own.yaml")], bare={})
    (tmp_path / "own.yaml").write_text("preset: full\nepochs: 5\n")
    with pytest.raises(ConfigError, match=r"own.yaml: a recipe cannot name another one as its 'preset'"):
        parse(WithPreset, ["--preset", str(tmp_path / "own.yaml")], bare={})
    with pytest.raises(ConfigError, match=r"--preset has no value; give the name of a recipe in data/recipes"):
        parse(WithPreset, ["--preset"], bare={})
    with pytest.raises(ConfigError, match="--preset"):
        parsed("--weights", "a.pt", "--preset", "quick")  # these settings have no recipes


def test_command_line_is_read_back_as_the_settings_it_was_made_of() -> None:
    config = Config(weights=("a b.pt", "c.pt"), epochs=9, rate=0.5, sizes=(1, 2), fast=True, mode="b", device="0")
    line = command_line("some.py", config)
    assert (
        line == "python some.py --weights 'a b.pt' c.pt --epochs 9 --rate 0.5 --sizes 1 2 --fast --mode b --device 0"
    )
    assert parsed(*shlex.split(line)[2:]) == config
    assert command_line("some.py", Config(weights=("a.pt",)), without=["weights"]) == "python some.py"


def test_interrupt_with_a_message_says_how_to_go_on(capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(config: Config) -> None:
        raise KeyboardInterrupt("python some.py --resume x continues this run")

    assert exit_code(interrupted, "--weights", "a.pt") == 130
    assert capsys.readouterr().err == "interrupted; python some.py --resume x continues this run\n"


def test_failed_check_exits_with_1_and_an_interrupt_with_130() -> None:
    def interrupted(config: Config) -> None:
        raise KeyboardInterrupt

    assert exit_code(lambda config: False, "--weights", "a.pt") == 1
    assert exit_code(interrupted, "--weights", "a.pt") == 130


def test_system_error_met_by_another_package_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    def main(config: Config) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "runs/exp/events")

    assert exit_code(main, "--weights", "a.pt") == 2
    expected = "error: runs/exp/events: No space left on device; check the path, its permissions and the free space\n"
    assert capsys.readouterr().err == expected


@pytest.mark.parametrize("error", [ZeroDivisionError(), OSError("image file is truncated")])
def test_our_own_mistake_keeps_its_traceback(error: Exception) -> None:
    def main(config: Config) -> None:
        raise error

    with pytest.raises(type(error)):
        run_script(main, Config, argv=["--weights", "a.pt"])


def test_success_does_not_exit() -> None:
    seen: list[Config] = []
    run_script(seen.append, Config, argv=["--weights", "a.pt"])
    assert seen == [Config(weights=("a.pt",))]
