"""torch.utils.flop_counter counts DropConnect as the dense layer, and no mask."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from fused_dropout.functional import dropconnect_linear

ROWS, IN, OUT = 6, 14, 9


def counted(layer: torch.nn.Module, *, backward: bool) -> int:
    input = torch.randn(2, ROWS // 2, IN, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        output: Tensor = layer(input)
        if backward:
            output.sum().backward()
    return counter.get_total_flops()


class DropConnect(torch.nn.Linear):
    storage = "auto"

    def forward(self, input: Tensor) -> Tensor:
        return dropconnect_linear(input, self.weight, self.bias, 0.3, mask_storage=self.storage)


@pytest.mark.parametrize("storage", ["regenerate", "packed"])
def test_dropconnect_counts_as_linear(storage: str, place: torch.device) -> None:
    layer = DropConnect(IN, OUT)
    layer.storage = storage
    forward = counted(layer, backward=False)
    both = counted(layer, backward=True)
    assert forward == 2 * ROWS * IN * OUT
    assert both == 3 * forward
    assert both == counted(torch.nn.Linear(IN, OUT), backward=True)
