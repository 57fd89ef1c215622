"""The kernels' machine code, executed whole on small problems: what it computes is right.

So the model executes what a GPU would, and its counts are of the work that is done.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from kernel_model.build import built
from kernel_model.device import Device
from kernel_model.execute import execute
from kernel_model.registers import Array
from numpy.typing import NDArray
from torch import Tensor

import fused_dropout
from fused_dropout import reference
from fused_dropout._core import extension

pytestmark = pytest.mark.usefixtures("tools")

SEED, OFFSET = 2**63 + 12345, 2**40 + 7
P_MASKED = (0.5, 0.1)


def device(file: str, **contents: Tensor) -> Device:
    """Fresh memory with the tensors in it."""
    state = np.array([SEED, OFFSET], np.uint64)
    return Device(built(file), {"rng_state": state} | {k: raw(t) for k, t in contents.items()})


def raw(tensor: Tensor) -> NDArray[np.uint8]:
    return tensor.contiguous().view(torch.uint8).numpy()


def result(of: Device, like: Tensor, name: str = "result") -> Tensor:
    """An array of the device as a tensor."""
    data: Array = of.memory.array(name, np.uint8).copy()
    return torch.from_numpy(data).view(like.dtype).reshape(like.shape)


def normal(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, generator=generator).to(dtype)


def mask(*shape: int, p: float, stream: int = 0) -> Tensor:
    """Whose elements are counted through, without a new group for each row."""
    count = int(np.prod(shape))
    drawn = fused_dropout.mask((count,), p, seed=SEED, offset=OFFSET, stream=stream)
    return drawn.reshape(shape).bool()


def keep_scale(p: float) -> float:
    return 1 / (1 - p)


# ---- DropConnect


LAYERS = [((5, 200, 70), 0.5), ((33, 128, 64), 0.1)]


def stored_masks(rows: int, in_features: int, out_features: int, p: float) -> Tensor:
    rng_state = fused_dropout.make_rng_state(SEED, OFFSET)
    weight = torch.empty(out_features, in_features)
    return extension.operators().dropconnect_mask_bits(weight, rng_state, rows, p)


@pytest.mark.parametrize("stored", [False, True])
@pytest.mark.parametrize(("sizes", "p"), LAYERS)
def test_dropconnect(sizes: tuple[int, int, int], p: float, stored: bool) -> None:
    rows, ins, outs = sizes
    x, w, b, g = normal(rows, ins), normal(outs, ins), normal(outs), normal(rows, outs)
    bits = fused_dropout.mask((rows, outs, ins), p, seed=SEED, offset=OFFSET).double()
    bias_bits = fused_dropout.mask((rows, outs), p, seed=SEED, offset=OFFSET, stream=1).double()
    masked = bits * w.double() * keep_scale(p)
    expected = {
        "forward": torch.einsum("noi,ni->no", masked, x.double())
        + bias_bits * b.double() * keep_scale(p),
        "d_input": torch.einsum("noi,no->ni", masked, g.double()),
        "d_weight": torch.einsum("noi,ni,no->oi", bits, x.double(), g.double()) * keep_scale(p),
    }
    operands = {"input": x, "weight": w, "bias": b, "grad": g}
    if stored:
        operands["mask_bits"] = stored_masks(*sizes, p)
    for name, truth in expected.items():
        on = device("dropconnect", **operands)
        on.run(f"dropconnect_{name}", *sizes, p, int(stored))
        computed = result(on, truth.float()).double()
        assert (computed - truth).abs().max() < 1e-6 * truth.abs().max(), name


@pytest.mark.parametrize(("sizes", "p"), LAYERS)
def test_masks_that_are_stored(sizes: tuple[int, int, int], p: float) -> None:
    outs = sizes[2]
    on = device("dropconnect")
    on.run("dropconnect_store_masks", *sizes, p)
    expected = stored_masks(*sizes, p)
    assert torch.equal(result(on, expected, "mask_bits")[:, :, :outs], expected[:, :, :outs])


@pytest.mark.parametrize("rows", [3, 70])
def test_bias_gradient(rows: int) -> None:
    g = normal(rows, 130)
    kept = fused_dropout.mask((rows, 130), 0.1, seed=SEED, offset=OFFSET, stream=1)
    truth = (kept * g.double()).sum(0) * keep_scale(0.1)
    on = device("dropconnect", grad=g)
    on.run("dropconnect_d_bias", rows, 130, 0.1)
    assert (result(on, g[0]) - truth).abs().max() < 1e-6 * truth.abs().max()


def test_every_product_is_one_ffma() -> None:
    """Where no tile is cut: as many lanes execute FFMAs as there are products."""
    rows, ins, outs = 64, 256, 128
    on = device("dropconnect", input=normal(rows, ins), weight=normal(outs, ins))
    launches = on.call("dropconnect_forward", rows, ins, outs, 0.5, 0)
    executed = 0
    for launch in launches:
        code = on.code[launch.kernel.name]
        is_ffma = np.array([instruction.base == "FFMA" for instruction in code])
        for number in range(launch.blocks):
            trace = execute(on.code, launch, number, on.memory)
            executed += sum(
                int(is_ffma[first:end].sum() * warps.sum()) for first, end, warps in trace.runs
            )
    assert executed * 32 == rows * ins * outs


# ---- elements


def dropped(x: Tensor, kept: Tensor, p: float) -> Tensor:
    scale = torch.tensor(keep_scale(p), dtype=torch.float32)
    return torch.where(kept, x.float() * scale, torch.zeros(()))


@pytest.mark.parametrize("p", P_MASKED)
@pytest.mark.parametrize("count", [8, 1000, 4099, 40000])
def test_dropout(count: int, p: float) -> None:
    x, r = normal(count, dtype=torch.bfloat16), normal(count, dtype=torch.bfloat16).flip(0)
    expected = dropped(x, mask(count, p=p), p)
    for residual in (0, 1):
        on = device("dropout", input=x, residual=r)
        on.run("dropout_linear", p, count, residual)
        total = expected + r.float() if residual else expected
        assert torch.equal(result(on, x), total.bfloat16())


@pytest.mark.parametrize("shape", [(2, 96, 50), (3, 70, 64), (1, 5, 9)])
def test_dropout_of_maps(shape: tuple[int, int, int]) -> None:
    images, channels, pixels = shape
    p = 0.1
    x = normal(images, pixels, channels, dtype=torch.bfloat16)
    on = device("dropout", input=x)
    on.run("dropout_channels_last", p, *shape)
    kept = mask(*shape, p=p).transpose(1, 2)
    assert torch.equal(result(on, x), dropped(x, kept, p).bfloat16())
    x = normal(*shape, dtype=torch.bfloat16)
    on = device("dropout", input=x)
    on.run("dropout_channels", p, *shape)
    kept = mask(images, channels, 1, p=p)
    assert torch.equal(result(on, x), dropped(x, kept, p).bfloat16())


@pytest.mark.parametrize("p", P_MASKED)
def test_packed_bits(p: float) -> None:
    on = device("dropout")
    on.run("draw_packed_bits", p, 1280)
    expected = fused_dropout.packed_mask((10, 128), p, seed=SEED, offset=OFFSET)
    assert torch.equal(result(on, expected, "mask_bits"), expected)


@pytest.mark.parametrize("p", P_MASKED)
def test_epilogue(p: float) -> None:
    rows, features = 40, 300
    x, b, r, g = (
        normal(*shape, dtype=torch.bfloat16)
        for shape in ((rows, features), (features,), (rows + 1, features), (rows, features + 1))
    )
    r, g = r[1:].contiguous(), g[:, 1:].contiguous()
    leaf, bias = x.double().requires_grad_(), b.double().requires_grad_()
    kept = mask(rows, features, p=p)
    activated = torch.nn.functional.gelu(leaf + bias) * kept * keep_scale(p)
    activated.backward(g.double())
    on = device("epilogue", input=x, bias=b, residual=r)
    on.run("epilogue_forward", p, rows, features)
    assert_close(result(on, x), activated.detach() + r.double())
    on = device("epilogue", input=x, bias=b, grad=g)
    on.run("epilogue_backward", p, rows, features, 1)
    assert leaf.grad is not None and bias.grad is not None
    assert_close(result(on, x), leaf.grad)
    assert_close(result(on, b, "d_bias"), bias.grad)


def assert_close(computed: Tensor, truth: Tensor) -> None:
    """Up to the rounding of bfloat16."""
    error = (computed.double() - truth).abs() / (truth.abs() + 0.1)
    assert error.max() < 2**-8


def test_gaussian_dropout() -> None:
    x = normal(4100, dtype=torch.bfloat16)
    on = device("noise", input=x)
    on.run("noise_gaussian", 0.3, len(x))
    noise = reference.normal_noise((len(x),), seed=SEED, offset=OFFSET)
    assert_close(result(on, x), x.double() * (1 + 0.3 * torch.as_tensor(noise).double()))


def test_concrete_dropout() -> None:
    x = normal(4100, dtype=torch.bfloat16)
    g = x.flip(0)
    logit = torch.tensor([-2.0])
    uniform = fused_dropout.uniform_noise((len(x),), seed=SEED, offset=OFFSET).double()
    leaf, rate = x.double().requires_grad_(), logit.double().requires_grad_()
    dropped_part = torch.sigmoid((rate + torch.logit(uniform)) * 10)
    truth = leaf * (1 - dropped_part) / (1 - torch.sigmoid(rate))
    truth.backward(g.double())
    on = device("noise", input=x, logit_p=logit)
    on.run("noise_concrete_forward", len(x))
    assert_close(result(on, x), truth.detach())
    on = device("noise", input=x, grad=g, logit_p=logit)
    on.run("noise_concrete_backward", len(x))
    assert leaf.grad is not None and rate.grad is not None
    assert_close(result(on, x), leaf.grad)
    assert abs(result(on, logit, "d_logit") / rate.grad - 1) < 1e-4
