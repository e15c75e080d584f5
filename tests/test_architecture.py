"""The house rules that reading the code can check: floors, imports, sizes, one home of sampling, settings that are read."""

import ast
import re
import subprocess
from argparse import ArgumentParser
from dataclasses import fields
from pathlib import Path

import pytest

from nnssl_reg.commands.arguments import COMMANDS
from nnssl_reg.planning import plans

ROOT = Path(__file__).parents[1]
FLOORS = ({"geometry"}, {"imageio", "paths"}, {"planning", "architectures"},
          {"preprocessing", "pretraining", "features", "registration", "evaluation"}, {"commands"})  # fmt: skip
LEVEL = {room: level for level, rooms in enumerate(FLOORS) for room in rooms}
LOADED_WHERE_USED = {"SimpleITK", "matplotlib", "resource", "dynamic_network_architectures", "timm", "distributed", "triton"}
LOADED_LATE = re.compile(r"_triton$|^kernels_cuda$|^sharding$")  # modules that not every device or torch can load
SECTIONS = (plans.ChannelPlan, plans.ImagePlan, plans.NetworkPlan, plans.PretrainingPlan, plans.FeaturesPlan,
            plans.RegistrationPlan)  # fmt: skip

TREES = {path.relative_to(ROOT): ast.parse(path.read_text(encoding="utf-8"))
         for folder in ("nnssl_reg", "tests") for path in sorted((ROOT / folder).rglob("*.py"))}  # fmt: skip
PACKAGE = {path: tree for path, tree in TREES.items() if path.parts[0] == "nnssl_reg" and path.name != "__init__.py"}


def nodes(kind, trees=PACKAGE):
    return [(path, node) for path, tree in trees.items() for node in ast.walk(tree) if isinstance(node, kind)]


def name_of(node) -> str:
    """The last name of a.b.c or c."""
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")


def modules(node) -> list[str]:
    return [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]


def test_imports_point_down_and_rooms_of_one_floor_are_strangers():
    for path, node in nodes((ast.Import, ast.ImportFrom)):
        own = path.with_suffix("").parts[1]
        for module in modules(node):
            if module.startswith("nnssl_reg."):
                other = module.split(".")[1]
                assert other == own or LEVEL[other] < LEVEL[own], f"{path}:{node.lineno} imports {module}"


def test_imports_are_absolute_and_at_the_top():
    for path, node in nodes((ast.Import, ast.ImportFrom)):
        assert getattr(node, "level", 0) == 0, f"{path}:{node.lineno} imports relatively"
        at_top = node in PACKAGE[path].body or all(LOADED_LATE.search(alias.name) for alias in node.names)
        assert at_top or {m.split(".")[0] for m in modules(node)} <= LOADED_WHERE_USED, f"{path}:{node.lineno} imports inside"
        assert "importlib" not in modules(node) or path.name == "entry.py", f"{path} imports by name"


def test_files_and_functions_are_short():
    lengths = [(n.end_lineno - n.lineno + 1, f"{p}: {n.name}") for p, n in nodes((ast.FunctionDef, ast.AsyncFunctionDef))]
    assert [item for item in lengths if item[0] > 50] == []
    assert sum(length > 40 for length, _ in lengths) <= len(lengths) / 10
    assert [path for path in TREES if len((ROOT / path).read_text(encoding="utf-8").splitlines()) > 300] == []


def test_the_top_level_holds_what_a_package_needs_and_nothing_a_program_left_there():
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("only a clone knows which files are the project's")
    top = {Path(name).parts[0] for name in listed.stdout.splitlines()}
    assert {name for name in top if not name.startswith(".")} == {
        "nnssl_reg", "tests", "documentation", "setup.py", "pyproject.toml", "README.md", "LICENSE"}  # fmt: skip


def test_every_file_says_in_its_first_line_what_it_is_for():
    for path, tree in TREES.items():
        if path.name != "__init__.py":
            first = (ROOT / path).read_text(encoding="utf-8").split("\n", 1)[0]
            said = (ast.get_docstring(tree) or "").split("\n")[0]
            assert first.startswith('"""') and said.endswith(".") and not re.search(r"\. [A-Z]", said), path


def test_sampling_has_one_home():
    words = {"grid_sample", "affine_grid", "align_corners"}
    used = [(path, node.arg if isinstance(node, ast.keyword) else name_of(node))
            for path, node in nodes((ast.Attribute, ast.Name, ast.keyword))]  # fmt: skip
    assert {str(path) for path, word in used if word in words} == {"nnssl_reg/geometry/sampling.py"}


def test_no_class_is_both_made_and_inherited_from():
    classes = {node.name for _, node in nodes(ast.ClassDef)}
    parents = {name_of(base) for _, node in nodes(ast.ClassDef) for base in node.bases}
    made = {name_of(node.func) for _, node in nodes(ast.Call)}
    assert classes & parents & made == set()


def test_nothing_is_unpickled():
    for path, node in nodes((ast.Import, ast.ImportFrom)):
        assert not {"pickle", "dill", "joblib", "shelve"} & {m.split(".")[0] for m in modules(node)}, path
    for path, node in nodes(ast.Call):
        if ast.unparse(node.func) == "torch.load":
            assert any(k.arg == "weights_only" and ast.unparse(k.value) == "True" for k in node.keywords), path
        assert not any(k.arg == "allow_pickle" and ast.unparse(k.value) != "False" for k in node.keywords), path


def test_only_the_shell_knows_the_environment_and_prints():
    for path, node in nodes((ast.Call, ast.Attribute)):
        if path.parts[1] != "commands":
            assert not (isinstance(node, ast.Call) and name_of(node.func) == "print"), path
            assert path.name == "paths.py" or name_of(node) not in ("environ", "getenv"), path


@pytest.mark.parametrize("section", SECTIONS, ids=lambda cls: cls.__name__)
def test_every_plan_value_is_read_by_something(section):
    readers = {p: t for p, t in PACKAGE.items() if p.name != "plans.py" and not p.name.startswith("rules_")}
    read = {node.attr for _, node in nodes(ast.Attribute, readers) if isinstance(node.ctx, ast.Load)}
    read |= {node.arg for _, node in nodes(ast.arg, readers)}  # **asdict(section) becomes arguments
    assert {f.name for f in fields(section)} - read == set()


@pytest.mark.parametrize("name", COMMANDS)
def test_every_flag_is_read_by_something(name):
    parser = ArgumentParser(add_help=False)
    COMMANDS[name].add_arguments(parser)
    shell = {path: tree for path, tree in PACKAGE.items() if path.parts[1] == "commands"}
    read = {node.attr for _, node in nodes(ast.Attribute, shell) if name_of(node.value) == "args"}
    assert {action.dest for action in parser._actions} - read == set()
