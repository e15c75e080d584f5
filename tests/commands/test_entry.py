"""The entry of every command: help at once, errors in one line, exit codes, nothing heavy imported before it is needed."""

import importlib.util
import re
import subprocess
import sys
from argparse import ArgumentParser
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from nnssl_reg.commands import entry
from nnssl_reg.commands.arguments import COMMANDS
from nnssl_reg.commands.entry import main

HELP = """
import sys, time
from nnssl_reg.commands.entry import main
try:
    main(["--help"], name=sys.argv[1])
except SystemExit as stop:
    print("exit code", stop.code)
print("imported", [m for m in ("torch", "numpy", "SimpleITK", "nibabel", "numba", "matplotlib", "scipy") if m in sys.modules])
print("seconds", time.process_time())
"""
IMPORT_ALL = """
import importlib, pkgutil, sys
import nnssl_reg
for module in pkgutil.walk_packages(nnssl_reg.__path__, "nnssl_reg."):
    importlib.import_module(module.name)
print("imported", [m for m in ("SimpleITK", "matplotlib", "ants") if m in sys.modules])
"""


def python(code: str, *args: str) -> str:
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True, cwd=root, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("name", COMMANDS)
def test_help_answers_at_once(name):
    said = python(HELP, name)
    assert f"usage: {name}" in said and COMMANDS[name].help in said and "exit code 0" in said
    assert "imported []" in said and float(said.rsplit("seconds ", 1)[1]) < 1


def test_the_whole_package_imports_without_simpleitk_and_matplotlib():
    assert "imported []" in python(IMPORT_ALL)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_its_module(name):
    assert importlib.util.find_spec(COMMANDS[name].module) is not None


@pytest.fixture
def command(monkeypatch):
    """command(run): nnssl_register with another body; returns the exit code."""

    def call(run, *flags: str) -> int:
        monkeypatch.setattr(entry.importlib, "import_module", lambda name: SimpleNamespace(run=run))
        return main(list(flags), name="nnssl_register")

    return call


def failing(error: BaseException):
    def run(args):
        raise error

    return run


def test_exit_codes_are_those_of_the_command(command):
    assert [command(lambda args, code=code: code) for code in (None, 0, 1)] == [0, 0, 1]


@pytest.mark.parametrize("error", [ValueError("no such thing"), FileNotFoundError("no such thing"), OSError("no such thing")])
def test_what_a_user_can_mend_is_said_in_one_line(command, capsys, error):
    assert command(failing(error)) == 1
    assert capsys.readouterr().err == "error: no such thing\n"


OUT_OF_MEMORY = (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 8 GiB"),
                 RuntimeError("[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: can't allocate memory"),
                 MemoryError())  # fmt: skip


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize(("name", "way_out"), [
    ("nnssl_register", "-device cpu"), ("nnssl_tune_registration", "mind_spacing_mm"),
    ("nnssl_train_dino", "pretraining.batch_size"), ("nnssl_info", "machine"),
])  # fmt: skip
def test_where_memory_ends_the_way_out_of_the_command_is_said(monkeypatch, capsys, name, way_out, error):
    monkeypatch.setattr(entry.importlib, "import_module", lambda module: SimpleNamespace(run=failing(error)))
    needed = {"nnssl_tune_registration": ["-i", "pairs.json"]}
    assert main(needed.get(name, []), name=name) == 1
    said = capsys.readouterr().err
    assert way_out in said and "memory" in said and said.count("\n") == 1 and "GPU 0" not in said


def test_ways_out_of_memory_name_flags_that_exist():
    for name, said in entry.LESS_MEMORY.items():
        parser = ArgumentParser()
        COMMANDS[name].add_arguments(parser)
        own = said.partition("nnssl_plan_experiment")[0]
        options = {option for action in parser._actions for option in action.option_strings}
        assert set(re.findall(r"(?<=[ (])--?[a-z]\w*", own)) <= options


def test_verbose_shows_where_an_error_came_from(command):
    with pytest.raises(ValueError, match="no such thing"):
        command(failing(ValueError("no such thing")), "--verbose")


def test_a_bug_is_not_hidden(command):
    with pytest.raises(KeyError):
        command(failing(KeyError("bug")))


def test_ctrl_c_ends_with_130_and_says_what_is_kept(command, capsys):
    assert command(failing(KeyboardInterrupt())) == 130
    assert "what it had finished is kept" in capsys.readouterr().err


@pytest.mark.parametrize(("flag", "meant"), [("--featurs", "--features"), ("--feat", "--features"), ("-init", "--init")])
def test_a_mistyped_option_is_refused_with_what_may_be_meant(command, capsys, flag, meant):
    with pytest.raises(SystemExit) as stop:
        command(lambda args: 0, flag, "mind")
    said = capsys.readouterr().err
    assert stop.value.code == 2 and f"there is no option {flag}" in said and meant in said.split("did you mean")[1]


def test_negative_numbers_are_values_not_options(command):
    assert command(lambda args: args.limit + 5, "-limit", "-3") == 2
