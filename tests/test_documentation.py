"""The documentation against the code: commands, flags and settings exist, links resolve, code runs and does what it says."""

import ast
import re
import shlex
from argparse import ArgumentParser
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import get_type_hints

import numpy as np
import pytest
import torch

from nnssl_reg.commands.arguments import COMMANDS
from nnssl_reg.geometry.affine import AffineTransform
from nnssl_reg.geometry.displacement import DisplacementField
from nnssl_reg.geometry.image import Image
from nnssl_reg.imageio.images import read_image, write_image
from nnssl_reg.imageio.transforms import write_composite, write_field
from nnssl_reg.planning.plans import Configuration

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "documentation").rglob("*.md"))]
TEXT = {page: page.read_text(encoding="utf-8") for page in PAGES}
NO_COMMANDS = {"nnssl_raw", "nnssl_preprocessed", "nnssl_results", "nnssl_reg", "nnssl_env", "nnssl_adaptation_plan"}
# variables, folders, the package, and a key of nnU-Net's checkpoints
EVERYWHERE = {"--help", "-h", "--verbose"}  # flags that entry.py and argparse add
pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def flags_of(name: str) -> set[str]:
    parser = ArgumentParser(add_help=False)
    COMMANDS[name].add_arguments(parser)
    return {option for action in parser._actions for option in action.option_strings} | EVERYWHERE


def without_blocks(text: str) -> str:
    """A page without its fenced and indented blocks."""
    text = re.sub(r"^```.*?^```", "", text, flags=re.S | re.M)
    return re.sub(r"^ {4}.*$", "", text, flags=re.M)


def code_spans(text: str) -> list[str]:
    return re.findall(r"(?<!`)`([^`\n]+)`(?!`)", without_blocks(text))


def command_lines(text: str) -> list[list[str]]:
    """The words of every command of this package in a block or a code span; `a && b` are two."""
    lines = [line.strip() for line in re.findall(r"^ {4}(.+)$", text, re.M)] + code_spans(text)
    parts = [part.strip() for line in lines for part in line.split("&&")]
    return [shlex.split(part, comments=True) for part in parts if part.split(" ")[0] in COMMANDS]


def blocks(text: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", text, re.S | re.M)


def anchors(text: str) -> set[str]:
    """Anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def settings_in(cls) -> dict[str, set[str]]:
    hints = get_type_hints(cls)
    return {f.name: {field.name for field in fields(hints[f.name])} for f in fields(cls) if is_dataclass(hints[f.name])}


@pages
def test_every_named_command_exists(page):
    named = set(re.findall(r"\bnnssl_[a-z_]+\b", TEXT[page]))
    assert named - set(COMMANDS) - NO_COMMANDS == set()


@pages
def test_every_flag_exists_in_the_command_it_is_given_to(page):
    for words in command_lines(TEXT[page]):
        given = {word for word in words[1:] if re.match(r"--?[a-zA-Z]", word)}
        assert given <= flags_of(words[0]), words


@pages
def test_every_flag_named_alone_exists_in_a_command(page):
    known = set().union(*map(flags_of, COMMANDS))
    named = {span.split(" ")[0] for span in code_spans(TEXT[page]) if re.match(r"--?[a-zA-Z]", span)}
    assert named <= known | {"-out"}  # -out: an example of a slip


@pages
def test_every_setting_exists(page):
    sections = settings_in(Configuration)
    for section, name in re.findall(r"--set ([a-z]+)\.(\w+)=", TEXT[page]):
        assert (section, name) == ("section", "name") or name in sections.get(section, ())


@pages
def test_every_relative_link_resolves(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", TEXT[page]):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        assert not anchor or anchor in anchors(TEXT[file]), target


@pages
def test_no_page_names_a_place_of_the_machine_it_was_written_on(page):
    assert not re.search(r"(?<![\w.])/(work|tmp|root|home)\b", TEXT[page])


@pages
def test_every_python_block_compiles(page):
    for block in blocks(TEXT[page]):
        ast.parse(block)


def test_the_readme_names_every_command_and_begins_with_install_and_demo():
    readme = TEXT[ROOT / "README.md"]
    assert set(COMMANDS) <= set(code_spans(readme))
    assert re.findall(r"^ {4}(pip .*)$", readme, re.M) == ["pip install . && nnssl_demo", "pip install '.[test]' && pytest"]


def test_every_flag_of_registering_and_applying_is_explained():
    spans = " ".join(code_spans(TEXT[ROOT / "documentation" / "registration.md"]))
    wanted = (flags_of("nnssl_register") | flags_of("nnssl_apply_transform") | flags_of("nnssl_evaluate")) - {"-h", "--help"}
    assert {flag for flag in wanted if not re.search(rf"(?<![\w-]){flag}\b", spans)} == set()


@pytest.fixture
def registered(tmp_path, monkeypatch, turned_grid, textured_image):
    """A folder as the code in registration.md expects it, with transforms of a known deformation; the field."""
    monkeypatch.chdir(tmp_path)
    fixed_grid = turned_grid((30, 26, 22), (3.0, 3.5, 4.0), (12, -8, 20))
    moving_grid = turned_grid((28, 30, 24), (3.2, 3.0, 4.2), (-6, 5, 0), (3.0, -2.0, 4.0))
    deformation = DisplacementField(2 * torch.sin(fixed_grid.points_mm() / 25), fixed_grid)
    initial = AffineTransform.translation([2.0, -1.0, 3.0])
    field = initial.after(deformation)
    moving = textured_image(moving_grid)
    write_image("fixed.nii.gz", field.warp(moving))
    write_image("moving.nii.gz", moving)
    write_image("moving_label.nii.gz", Image((moving.array > 100).astype(np.uint8), moving_grid))
    write_field("out/fixed__moving_field.nii.gz", field)
    write_composite("out/fixed__moving_transform.h5", initial, deformation)
    return field


def run_block_that_writes(file: str) -> dict:
    """Run the block of registration.md that writes `file`; the names it leaves."""
    code = next(block for block in blocks(TEXT[ROOT / "documentation" / "registration.md"]) if f'"{file}"' in block)
    names: dict = {}
    exec(compile(code, "registration.md", "exec"), names)
    return names


@pytest.mark.parametrize(("module", "file"), [("SimpleITK", "warped_by_itk.nii.gz"), ("ants", "warped_by_ants.nii.gz"),
                                              ("nnssl_reg", "warped.nii.gz")])  # fmt: skip
def test_the_code_for_itk_ants_and_python_warps_as_we_do(registered, module, file):
    pytest.importorskip(module)
    run_block_that_writes(file)
    ours = registered.warp(read_image("moving.nii.gz")).array
    same = np.abs(read_image(file).array - ours) < 1e-3 * np.ptp(ours)
    assert same.mean() > 0.999  # at the very edge of the moving image, rounding decides what is inside


def test_the_code_for_registration_from_python_registers(registered):
    found = run_block_that_writes("registered.nii.gz")
    inside = (slice(None), *[slice(6, -6)] * 3)
    off = (found["field"].vectors_mm - registered.vectors_mm)[inside].norm(dim=0)
    assert off.mean() < 0.5 * registered.vectors_mm[inside].norm(dim=0).mean()
