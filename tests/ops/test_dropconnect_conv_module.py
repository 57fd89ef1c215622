"""DropConnectConv1d, 2d and 3d: drop-ins for torch.nn's convolutions."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch

import fused_dropout
from fused_dropout import nn, reference

LAYERS = {
    dims: (getattr(nn, f"DropConnectConv{dims}d"), getattr(torch.nn, f"Conv{dims}d"))
    for dims in (1, 2, 3)
}
SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "stride": {"stride": 2, "padding": 1},
    "groups": {"groups": 2, "bias": False, "dilation": 2},
    "same": {"padding": "same"},
    **{mode: {"padding": 1, "padding_mode": mode} for mode in ("reflect", "replicate")},
    "circular": {"padding": "same", "padding_mode": "circular"},
    "valid": {"padding": "valid", "padding_mode": "reflect"},
}


def both(dims: int, kernel: int = 3, **settings: Any) -> tuple[torch.nn.Module, torch.nn.Module]:
    """Our layer and torch's with the same parameters."""
    ours, torchs = (kind(4, 6, kernel, **settings) for kind in LAYERS[dims])
    ours.load_state_dict(torchs.state_dict())
    return ours, torchs


@pytest.mark.parametrize("dims", LAYERS)
def test_parameters_initialisation_and_state_dict_are_torch_s(
    dims: int, place: torch.device
) -> None:
    kinds = LAYERS[dims]
    made = []
    for kind in kinds:
        torch.manual_seed(3)
        made.append(kind(4, 6, 3, groups=2))
    ours, torchs = made
    assert list(ours.state_dict()) == list(torchs.state_dict())
    for a, b in zip(ours.parameters(), torchs.parameters(), strict=True):
        assert torch.equal(a, b) and a.device == place
    assert isinstance(ours, kinds[1])
    assert kinds[0](4, 6, 3, bias=False).bias is None
    assert kinds[0](4, 6, 3, dtype=torch.float64).weight.dtype == torch.float64
    assert kinds[0](4, 6, 3, device="meta").weight.is_meta


@pytest.mark.parametrize("dims", LAYERS)
@pytest.mark.parametrize("kernel", [3, 2])
@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.filterwarnings("ignore:.*padding='same' with even kernel")
def test_evaluation_has_torch_s_bits_and_training_the_reference_s(
    dims: int, kernel: int, settings: str, place: torch.device
) -> None:
    ours, torchs = both(dims, kernel, **SETTINGS[settings])
    input = torch.randn(3, 4, *[7, 6, 8][:dims])
    assert torch.equal(ours.eval()(input), torchs(input))
    ours, torchs = ours.double().train(), torchs.double()
    torch.manual_seed(1)
    output = ours(input.double())
    torch.manual_seed(1)
    seed, offset = torch.randint(-(2**63), 2**63 - 1, (2,)).tolist()

    def drop(input: torch.Tensor, weight: Any, bias: Any, *geometry: Any) -> torch.Tensor:
        return reference.dropconnect_conv(input, weight, bias, *geometry, seed=seed, offset=offset)

    with pytest.MonkeyPatch.context() as patch:  # torch's layer pads, the reference drops
        patch.setattr(torch.nn.functional, f"conv{dims}d", lambda *a: a)
        patch.setattr(torch.nn.modules.conv.F, f"conv{dims}d", lambda *a: a)
        arguments = torchs(input.double())
    torch.testing.assert_close(output, drop(*arguments), rtol=1e-10, atol=1e-10)


def test_repr_and_arguments() -> None:
    layer = nn.DropConnectConv2d(4, 6, 3, 2, 1, 1, 2, False, "reflect", 0.25, mask=3)
    assert repr(layer) == (
        "DropConnectConv2d(4, 6, kernel_size=(3, 3), stride=(2, 2), padding=(1, 1), groups=2, "
        "bias=False, padding_mode=reflect, p=0.25, mask=3)"
    )
    assert repr(nn.DropConnectConv1d(1, 1, 1, convention="paper")).endswith("convention='paper')")
    for settings, error in (
        ({"p": 1.5}, ValueError), ({"mask": "row"}, ValueError), ({"mask": 0}, ValueError),
        ({"convention": "none"}, ValueError), ({"bias": 0.5}, TypeError), ({"p": "1"}, TypeError),
        ({"padding_mode": "none"}, ValueError), ({"groups": 3}, ValueError),
    ):  # fmt: skip
        with pytest.raises(error):
            nn.DropConnectConv2d(4, 6, 3, **settings)


@pytest.mark.parametrize(
    "clone",
    [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))],
    ids=["copy", "pickle"],
)
def test_copies_work_alike(clone: Callable[[Any], Any], place: torch.device) -> None:
    layer = nn.DropConnectConv2d(3, 4, 3, padding=1, p=0.1, mask=2)
    input = torch.randn(4, 3, 5, 5)
    layer(input).sum().backward()
    other = clone(layer)
    assert repr(other) == repr(layer)
    torch.manual_seed(1)
    expected = layer(input)
    torch.manual_seed(1)
    assert torch.equal(other(input), expected)


def test_evaluation_exports_as_torch_s_convolution() -> None:
    layer = nn.DropConnectConv2d(3, 4, 3).eval()
    program = torch.export.export(layer, (torch.randn(2, 3, 5, 5),))
    called = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert called == ["aten.conv2d.default"]


def test_monte_carlo_dropout_knows_it(place: torch.device) -> None:
    model = torch.nn.Sequential(nn.DropConnectConv1d(3, 4, 3), torch.nn.ReLU()).eval()
    input = torch.randn(2, 3, 9)
    assert torch.equal(model(input), model(input))
    with fused_dropout.mc_dropout(model):
        assert not torch.equal(model(input), model(input))
