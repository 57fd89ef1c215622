"""A short run of tests/hostile, and that it finds what it is for."""

from __future__ import annotations

import dataclasses
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from support.paths import ROOT

from fused_dropout import reference
from fused_dropout._tools.table import Layer, Op, layers, ops
from fused_dropout.reference import _masks
from hostile import from_table, functions, modules, operators
from hostile.call import Call, Oracle
from hostile.compare import mismatch
from hostile.masks import mask_matrix
from hostile.operands import Layout, Operand

CALLS = 3000


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)


def test_hostile_calls() -> None:
    done = run("-m", "tests.hostile", "--calls", str(CALLS), "--seed", "1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"\n{CALLS} calls in " in done.stdout
    assert ": 0 failed" in done.stdout


def test_calls_follow_from_seed_and_number() -> None:
    first, again, other = (
        run("-m", "tests.hostile", "--seed", seed, "--only", "3").stdout for seed in "002"
    )
    assert first == again != other


PLANTED = """
import ctypes, sys, time
from tests.hostile import processes

processes.with_checked_malloc(1, sys.argv)
import torch

def run(number):
    if number == 7:
        tensor = torch.zeros(5)
        ctypes.memset(tensor.data_ptr() + 20, 1, 1)
    if number == 12:
        time.sleep(60)
    if number == 31:
        sys.exit(3)
    return ("uninitialised", "") if torch.empty(4).eq(0).any() else ("fine", "")

for report in sorted(processes.run_all(run, range(40), 2, 5.0)):
    print(report.number, report.outcome)
"""


def test_crashes_and_hangs_are_blamed_on_their_calls(tmp_path: Path) -> None:
    script = tmp_path / "planted.py"
    script.write_text(f"import sys\nsys.path.insert(0, {str(ROOT)!r})\n{PLANTED}")
    done = run(str(script))
    planted = {7: "!killed by SIGABRT", 12: "!hangs for 5 s", 31: "!exit status 1"}
    expected = [f"{number} {planted.get(number, 'fine')}" for number in range(40)]
    assert done.stdout.splitlines() == expected, done.stderr


@pytest.mark.parametrize(
    ("expression", "outcome"),
    [
        ("F.dropout(x, 0.5, seed=1)", "value"),
        ("F.dropout(x, 0.5, seed=2)", "!wrong number"),
        ("F.dropout(x, 0.5, seed=1) * (1 + 1e-4)", "!wrong number"),
        ("F.dropout(x, 0.5, seed=1) + 1e-45", "!wrong number"),
        ("F.dropout(x, 0.5, seed=1).double()", "!wrong number"),
        ("F.dropout(x, 0.5, seed=1)[1:]", "!wrong number"),
        ("torch.full_like(x, float('nan'))", "!wrong number"),
        ("F.dropout(x, 0.5, seed=1).detach()", "!gradient lost"),
        ("F.dropout(x.detach(), 0.5, seed=1) + x - x.detach()", "!wrong gradient"),
        ("(F.dropout(x, 0.5, seed=1), x.detach().mul_(2))[0]", "!operand changed"),
        ("(F.dropout(x, 0.5, seed=1), x_leaf.detach()[0].zero_())[0]", "!operand changed"),
        ("x", "!result shares memory with an operand"),
        ("F.dropout(x, 0.5, seed=1).t().contiguous().t()", "!memory format"),
        ("F.dropout(x, p=7)", "!good call refused with ValueError"),
        ("{}['x']", "!KeyError"),
        ("1 // 0", "!ZeroDivisionError"),
    ],
)
def test_bad_results_are_found(expression: str, outcome: str) -> None:
    layout = Layout("rows", (9, 6), "{b}[1:]")
    operand = Operand("x", (8, 6), "float32", "normal", 3, layout, grad=True)
    truth = Oracle(lambda t: (reference.dropout(t["x"], seed=1),), True, None, ("x",))
    call = Call("", expression, [operand], oracle=truth, may_alias=False, format_of="x")
    assert call.run()[0] == outcome


@pytest.mark.parametrize(
    ("expression", "outcome"),
    [
        ("F.dropout(x, 0.5, inplace=True, seed=1)", "value"),
        ("F.dropout(x, 0.5, seed=1)", "!another tensor than the written one returned"),
        ("F.dropout(x, 0.5, inplace=True, seed=2)", "!wrong number"),
        ("(x._base.zero_(), F.dropout(x, 0.5, inplace=True, seed=1))[1]",
         "!memory around the written view changed"),
    ],
)  # fmt: skip
def test_bad_writes_are_found(expression: str, outcome: str) -> None:
    operand = Operand("x", (4, 6), "float64", "normal", 3, Layout("", (9, 6), "{b}[1::2]"))
    truth = Oracle(lambda t: (reference.dropout(t["x"], seed=1),), elementwise=True)
    assert Call("", expression, [operand], oracle=truth, writes="x").run()[0] == outcome


@pytest.mark.parametrize(
    ("expression", "outcome"),
    [
        ("F.dropout(x, p=7)", "ValueError"),
        ("F.dropout(x)", "!bad argument accepted"),
        ("F.dropout(x, convention='')", "!argument not named"),
        ("(x.zero_(), F.dropout(x, p=7))", "!operand changed"),
        ("F.dropout(x, p=7 // 0)", "!ZeroDivisionError"),
        ("torch.ops.fused_dropout.mask(x, p='x')", "!schema in the message"),
    ],
)
def test_bad_answers_to_mistakes_are_found(expression: str, outcome: str) -> None:
    operand = Operand("x", (4,), "float32", "normal", 3, Layout("", (4,), "{b}"))
    assert Call("", expression, [operand], expect="error", names=("p",)).run()[0] == outcome


def test_a_wrong_number_without_dimensions_is_found() -> None:
    operand = Operand("x", (), "float32", "normal", 3, Layout("", (), "{b}"))
    truth = Oracle(lambda t: (t["x"] * 2,))
    assert Call("", "x * 3", [operand], oracle=truth).run()[0] == "!wrong number"


def test_complex_gradients_are_judged_part_by_part() -> None:
    truth = torch.tensor([1 + 2j, 3 + 4j], dtype=torch.complex128)
    own = truth.to(torch.complex64)
    for factor, found in ((1 + 1e-7, False), (1 + 1e-5, True)):
        ours = torch.complex(own.real, own.imag * factor)
        assert bool(mismatch(ours, truth, own, elementwise=True)) is found
        assert bool(mismatch(ours.conj(), truth.conj(), own.conj(), elementwise=True)) is found


def test_the_smallest_numbers_may_be_rounded() -> None:
    truth = torch.tensor([3e-309], dtype=torch.float64)
    for units, found in ((2, False), (1000, True)):
        ours = truth + units * 5e-324
        assert bool(mismatch(ours, truth, truth, elementwise=True)) is found


def test_the_faster_masks_are_the_references() -> None:
    draw = random.Random(0)
    for _ in range(8):
        size = draw.randrange(4), draw.randrange(300)
        rest = [draw.randrange(-(2**63), 2**64) for _ in range(2)]
        rest += [draw.randrange(128), draw.randrange(1, 33)]
        arguments = (*size, draw.random(), *rest)
        assert np.array_equal(_masks.mask_matrix(*arguments), mask_matrix(*arguments))


def test_nothing_is_left_out() -> None:
    assert functions.missing() == modules.missing() == []
    for schema in operators.schemas():
        name = schema.name.removeprefix(operators.SPACE)
        if name.rstrip("_") not in operators.TRUTHS:
            assert from_table.operator_named(name) is not None, name
            continue
        values = operators._Values(random.Random(0), name)
        assert [values.code(argument.name) for argument in schema.arguments]
        assert values.oracle() is not None
    assert torch.ops.fused_dropout.dropout.default._schema in operators.schemas()


# ---- an op that is only in the table -------------------------------------------------------------


def outcomes_of(draw: Callable[[random.Random], Call], name: str, calls: int) -> Counter[str]:
    """What becomes of so many calls; a failure shows its code."""
    outcomes: Counter[str] = Counter()
    for number in range(calls):
        call = draw(random.Random(f"{name} {number}"))
        outcome, details = call.run()
        assert not outcome.startswith("!"), f"{outcome}: {details}\n{call.code()}"
        outcomes[outcome] += 1
    return outcomes


@pytest.mark.parametrize("op", ops(), ids=lambda op: op.name)
def test_a_row_is_enough_for_calls_of_a_function(op: Op) -> None:
    def draw(source: random.Random) -> Call:
        return functions.call_of(source, from_table.draft_of(source, op), from_table.name_of(op))

    outcomes = outcomes_of(draw, op.name, 60)
    assert outcomes["value"] > 20 and sum(outcomes.values()) > outcomes["value"]


@pytest.mark.parametrize("layer", layers(), ids=lambda layer: layer.name)
def test_a_row_is_enough_for_calls_of_a_module(layer: Layer) -> None:
    recipe = from_table.LayerRecipe(layer)
    outcomes = outcomes_of(
        lambda source: modules.call_of(source, layer.name, recipe), layer.name, 30
    )
    assert outcomes["value"] > 10 and sum(outcomes.values()) > outcomes["value"]
    own_arguments = layer.name == "GaussianNoise"  # of which modules.py knows the function
    assert bool(recipe.function) != (layer.has_parameters() or own_arguments)


@pytest.mark.parametrize(
    "schema", operators.schemas(), ids=lambda it: f"{it.name}.{it.overload_name}"
)
def test_a_row_is_enough_for_calls_of_an_operator(schema: torch.FunctionSchema) -> None:
    def draw(source: random.Random) -> Call:
        name = schema.name.removeprefix(operators.SPACE)
        made = operators.from_the_table(source, schema, name)
        return operators._finished(source, schema, *made)

    outcomes = outcomes_of(draw, schema.name, 20)
    assert outcomes["value"] > 5 and sum(outcomes.values()) > outcomes["value"]


def test_a_wrong_row_is_noticed() -> None:
    """Another reference, seed or result, each in most of the calls that can show it."""
    (op,) = from_table.rows_of("gaussian_dropout")
    wrong = (
        lambda x, p, seed, **rest: reference.gaussian_dropout(x, p, seed=seed + 1, **rest),
        lambda x, p, seed, **rest: x * 1,
        lambda x, p, seed, **rest: reference.gaussian_dropout(x, p, seed=seed, **rest).flatten(),
    )
    for made_up in wrong:
        changed = dataclasses.replace(op, reference=made_up)
        found: Counter[str] = Counter()
        for number in range(60):
            source = random.Random(number)
            draft = from_table.draft_of(source, changed)
            found[functions.call_of(source, draft, "gaussian_dropout").run()[0]] += 1
        assert found["!wrong number"] > 8, found
