"""`fused-dropout verify` notices ops of the table that are wrong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from fused_dropout import functional
from fused_dropout._core import extension
from fused_dropout._tools import table
from fused_dropout._tools.table import Op, case, op_named
from fused_dropout._tools.verify.checks import Row, Settings, Target, run_check
from fused_dropout._tools.verify.table import ops, table_checks

TARGET = Target(extension.available_isas()[0], "cpu")
SETTINGS = Settings(quick=True, seed=3, targets=(TARGET,))


def rows_of(op: Op, monkeypatch: pytest.MonkeyPatch) -> tuple[Row, Row]:
    """The rows of one op's two checks."""
    monkeypatch.setattr("fused_dropout._tools.verify.table.ops", lambda: (op,))
    values, strides = (run_check(check) for check in table_checks(SETTINGS))
    return values, strides


def test_every_row_with_operands_is_checked_here_or_elsewhere() -> None:
    checked = {op.name for op in ops()}
    assert {op.name for op in table.ops() if op.operand_names} - checked == {"dropconnect_linear"}


def test_a_right_op_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    for row in rows_of(op_named("dropout"), monkeypatch):
        assert row.ok is True and row.cases > 3


def off_by_a_percent(*operands: Tensor, **keywords: object) -> Tensor:
    return 1.01 * functional.dropout(*operands, **keywords)


def wrong_gradient(input: Tensor, **keywords: object) -> Tensor:
    output = functional.dropout(input, **keywords)
    return output.detach() + 0 * output


def other_mask(input: Tensor, seed: int, **keywords: object) -> Tensor:
    return functional.dropout(input, seed=seed + 1, **keywords)


def wrong_dtype(input: Tensor, **keywords: object) -> Tensor:
    return functional.dropout(input.double(), **keywords)


@pytest.mark.parametrize("wrong", [off_by_a_percent, wrong_gradient, other_mask, wrong_dtype])
def test_a_wrong_op_fails(wrong: Callable[..., Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    values, _ = rows_of(replace(op_named("dropout"), function=wrong), monkeypatch)
    assert values.ok is False and "'p'" in values.note


def test_a_mask_that_follows_memory_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def in_memory_order(input: Tensor, **keywords: object) -> Tensor:
        flat = input.as_strided((input.numel(),), (1,))
        kept = functional.dropout(torch.ones_like(flat), **keywords)
        return input * kept.as_strided(input.shape, input.stride())

    op = replace(op_named("dropout"), function=in_memory_order, shapes=((5, 7),))
    _, strides = rows_of(op, monkeypatch)
    assert strides.ok is False


def test_an_op_in_double_is_held_to_its_own_accuracy(monkeypatch: pytest.MonkeyPatch) -> None:
    def in_single(input: Tensor, seed: int, factor: float) -> Tensor:
        del seed
        return (input.float() * factor).to(input.dtype)

    def written_out(input: Tensor, seed: int, factor: float) -> Tensor:
        del seed
        return input * factor

    settings = (case(factor=1.1),)
    op = Op("times", in_single, written_out, settings, ((50,),))
    values, _ = rows_of(op, monkeypatch)
    assert values.ok is False and "float64" in values.note
