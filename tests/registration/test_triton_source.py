"""What Triton's interpreter does not show: a pattern that only the compiler reads otherwise than Python."""

import ast
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "nnssl_reg"
TAKES_OVER = """
@triton.jit
def walk(values, n):
    here = tl.load(values)
    before = here
    for i in range(n):
        after = tl.load(values + i)
        before, here = here, after
"""


def taken_over_in_loops(source: str) -> list[str]:
    """Assignments `a = b` of names from before a loop, in a loop of a kernel that is not unrolled.

    Triton finds what a loop changes by reading its body once with the values from before it. If a and b were the same there, as
    after `a = b`, the value of a seems not to change, and all rounds are compiled with the first.
    """
    found = []
    for function in (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef)):
        if "triton.jit" not in " ".join(map(ast.unparse, function.decorator_list)):
            continue
        for loop in ast.walk(function):
            if isinstance(loop, ast.While) or (isinstance(loop, ast.For) and "static_range" not in ast.unparse(loop.iter)):
                found += [f"{function.name}: {a} = {b}" for a, b in _copies(loop) if b in _known_before(function, loop)]
    return found


def _copies(loop) -> list[tuple[str, str]]:
    """Names and the names that they are given the values of."""
    pairs = []
    for node in (n for n in ast.walk(loop) if isinstance(n, ast.Assign)):
        for target in node.targets:
            whole = isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple)
            pairs += zip(target.elts, node.value.elts) if whole else [(target, node.value)]
    return [(ast.unparse(a), b.id) for a, b in pairs if isinstance(b, ast.Name)]


def _known_before(function, loop) -> set[str]:
    stored = {n.id for n in ast.walk(function) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)
              and n.lineno < loop.lineno}  # fmt: skip
    return stored | {a.arg for a in function.args.args}


def test_no_loop_of_a_kernel_hands_on_a_value_that_the_compiler_would_not():
    assert taken_over_in_loops(TAKES_OVER) == ["walk: before = here"]
    modules = sorted(PACKAGE.rglob("*_triton.py"))
    assert len(modules) >= 6
    assert {path.name: found for path in modules if (found := taken_over_in_loops(path.read_text(encoding="utf-8")))} == {}
