"""The table is whole, and what it says of the ops is what is tested."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
import torch
from small_calls import SEED, argument_names, call_of, each_operator, operands_of, reference_of

from fused_dropout import functional, nn
from fused_dropout._core import extension
from fused_dropout._tools.pages.support import support_page
from fused_dropout._tools.table import PROPERTIES, Op, Operator, layers, operators, ops, ops_with

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "docs" / "support.md"
NOT_RANDOM = ("linear_drop_rates", "dropconnect_moments", "expected_relu")
NOISE = ("mask", "packed_mask", "uniform_noise", "normal_noise")
# What is not called with floating tensors alone, or takes a module; tests/ops has their own tests.
OF_INDICES = {"embedding_dropout"}
OTHER_MODULES = {nn.DropPathSkip, nn.EmbeddingDropout, nn.WeightDrop}


def test_every_function_is_a_row() -> None:
    names = {op.name.partition(",")[0] for op in ops()}
    assert names == {*functional.__all__, *NOISE} - {*NOT_RANDOM} - OF_INDICES
    assert len({op.name for op in ops()}) == len(ops())


def test_every_module_is_in_a_row() -> None:
    kinds = [getattr(nn, name) for name in nn.__all__]
    modules = {kind for kind in kinds if issubclass(kind, torch.nn.Module)}
    assert {layer.kind for layer in layers()} == modules - OTHER_MODULES


def test_every_operator_is_a_row_and_belongs_to_an_op() -> None:
    extension.operators()
    registered = torch._C._dispatch_get_all_op_names()
    found = {name.split("::")[1] for name in registered if name.startswith("fused_dropout::")}
    public = {name for name in found if not name.startswith("_")}
    named = [operator.name for operator in operators()]
    assert sorted(named) == sorted(public)
    assert sorted(name for op in ops() for name in op.operators) == sorted(named)


def test_forms_are_of_an_op_that_all_tests_call() -> None:
    forms = {op.form_of for op in ops()} - {""}
    assert forms and forms <= {op.name for op in ops() if not op.form_of}


@each_operator()
def test_differentiable_arguments_are_arguments(operator: Operator) -> None:
    assert set(operator.differentiable) <= set(argument_names(operator))


@pytest.mark.parametrize("op", ops(), ids=lambda op: op.name)
def test_operand_names_are_the_function_s(op: Op) -> None:
    function = getattr(op.function, "func", op.function)  # past functools.partial
    parameters = list(inspect.signature(function).parameters)
    assert parameters[: len(op.operand_names)] == list(op.operand_names)
    assert len(operands_of(op)) == len(op.operand_names)
    assert ("inplace" in parameters) == op.inplace


@pytest.mark.parametrize("op", ops(), ids=lambda op: op.name)
def test_small_calls_follow_the_reference_and_the_seed(op: Op, place: torch.device) -> None:
    operands = operands_of(op)
    output = call_of(op)(*operands)
    wanted = reference_of(op)(*operands)
    torch.testing.assert_close(output.double(), wanted.to(place).double(), rtol=1e-6, atol=1e-6)
    assert any(not torch.equal(output, call_of(op, seed=SEED + k)(*operands)) for k in (1, 2, 3))


@pytest.mark.parametrize("name", PROPERTIES)
def test_every_property_has_tests(name: str) -> None:
    sources = [path.read_text() for path in HERE.glob("test_*.py") if path.name != "test_table.py"]
    assert ops_with(name)
    assert any(f'each_op("{name}")' in source for source in sources)


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text() == support_page(), "run python -m fused_dropout._tools.pages docs"
