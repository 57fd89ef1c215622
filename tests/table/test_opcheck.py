"""Every operator passes torch.library.opcheck: schema, autograd, fake tensors, torch.compile."""

from __future__ import annotations

import torch
from small_calls import differentiable_positions, each_operator

from fused_dropout._tools.table import Operator

UTILITIES = (
    "test_schema",
    "test_autograd_registration",
    "test_faketensor",
    "test_aot_dispatch_dynamic",
)


@each_operator()
def test_without_gradients(operator: Operator, place: torch.device) -> None:
    for arguments in operator.calls():
        torch.library.opcheck(operator.overload, arguments, test_utils=UTILITIES)


@each_operator(differentiable=True)
def test_with_gradients(operator: Operator, place: torch.device) -> None:
    for arguments in operator.calls():
        positions = differentiable_positions(operator, arguments)
        if operator.in_place:  # a leaf that requires a gradient may not be written to
            positions.remove(0)
        for position in positions:
            arguments[position].requires_grad_()
        if positions:
            torch.library.opcheck(operator.overload, arguments, test_utils=UTILITIES)
