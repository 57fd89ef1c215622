"""The CUDA kernels on continuous noise, run on the CPU: the contract's bits, the CPU's numbers.

The arithmetic is the emulator's logf, sincospif and expf, as exact as a GPU's or better, so values
are held to the float64 reference with the bounds of the CPU's tests.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from cuda_on_cpu.runner import Misaligned, Worker
from support.kernel_memory import NUMPY_DTYPES, check_end, memory, name_of, poisoned_array
from support.noise_checks import EXTREME_RATES, assert_concrete_extremes, assert_rounded, ulps_from
from support.tensors import DTYPES, random_tensor
from torch import Tensor

from fused_dropout.reference import _noise as reference

SEED, OFFSET = -77, 2**40 + 3
MANY_BLOCKS = 1 << 14
# Edges of calls, accesses, warps (of 4 and 8 elements a lane) and blocks.
SIZES = (1, 3, 4, 5, 7, 8, 9, 127, 129, 1000, 1025, 2049, 5000)


def state() -> np.ndarray:
    """An rng_state tensor."""
    numbers = np.array([SEED, OFFSET], np.int64)
    numbers.flags.writeable = False
    return numbers


class Result:
    """Poisoned memory for `size` elements, and some behind it where nobody watches the end."""

    def __init__(self, device: Worker, size: int, dtype: torch.dtype) -> None:
        self.size, self.dtype = size, dtype
        self.array = poisoned_array(device, size, NUMPY_DTYPES[dtype])

    def tensor(self) -> Tensor:
        check_end(self.array, self.size)
        return torch.from_numpy(self.array)[: self.size].view(self.dtype)


def placed(array: np.ndarray, aligned: bool) -> np.ndarray | Misaligned:
    return array if aligned else Misaligned(array, array.itemsize)


def name(op: str, dtype: torch.dtype) -> str:
    return f"{op}_{name_of(dtype)}"


def logit(p: float, dtype: torch.dtype) -> np.ndarray:
    computed_in = np.float64 if dtype == torch.float64 else np.float32
    return np.array([math.log(p / (1 - p))], computed_in)


@pytest.mark.parametrize("aligned", [True, False], ids=["aligned", "misaligned"])
@pytest.mark.parametrize("max_blocks", [1, MANY_BLOCKS])
def test_noise(device: Worker, max_blocks: int, aligned: bool) -> None:
    for size in SIZES:
        keys = {"seed": SEED, "offset": OFFSET}
        uniforms = reference.uniform_noise((size,), **keys)
        normals = reference.normal_noise((size,), **keys)
        for dtype in (torch.float32, torch.float64):
            drawn = Result(device, size, dtype)
            entry = name("uniform_noise", dtype)
            to = placed(drawn.array, aligned)
            assert device.call(entry, state(), to, size, 0, max_blocks) == 0
            assert torch.equal(drawn.tensor().double(), uniforms)
            drawn = Result(device, size, dtype)
            entry = name("normal_noise", dtype)
            to = placed(drawn.array, aligned)
            assert device.call(entry, state(), to, size, 0, max_blocks) == 0
            if dtype == torch.float32:
                assert ulps_from(drawn.tensor(), normals) <= 4
            else:
                torch.testing.assert_close(drawn.tensor(), normals, rtol=2e-15, atol=0)


@pytest.mark.parametrize("start", [128, 128 * 2**33])
def test_noise_from_an_element_on(device: Worker, start: int) -> None:
    words = reference.noise_words(300, SEED, OFFSET, first=start)
    drawn = Result(device, 300, torch.float32)
    assert device.call("uniform_noise_float32", state(), drawn.array, 300, start, 1) == 0
    assert np.array_equal(drawn.tensor().double(), reference.uniforms_of_words(words))
    drawn = Result(device, 300, torch.float32)
    assert device.call("normal_noise_float32", state(), drawn.array, 300, start, 1) == 0
    assert ulps_from(drawn.tensor(), torch.as_tensor(reference.normals_of_words(words))) <= 4


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("aligned", [True, False], ids=["aligned", "misaligned"])
def test_gaussian_dropout(device: Worker, aligned: bool, dtype: torch.dtype) -> None:
    p = 0.3
    sigma = math.sqrt(p / (1 - p))
    for size in SIZES:
        input = random_tensor((size,), dtype=dtype)
        out = Result(device, size, dtype)
        arrays = placed(memory(input), aligned), placed(out.array, aligned)
        assert device.call(name("gaussian_dropout", dtype), state(), sigma, *arrays, size) == 0
        truth = reference.gaussian_dropout(input.double(), p, seed=SEED, offset=OFFSET)
        z = reference.normal_noise((size,), seed=SEED, offset=OFFSET)
        assert_rounded(out.tensor(), truth, input.double() * (1 + sigma * z.abs()))
        changed = memory(input).copy()
        entry = name("gaussian_dropout_in_place", dtype)
        assert device.call(entry, state(), sigma, placed(changed, aligned), size) == 0
        assert np.array_equal(changed, memory(out.tensor()))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("aligned", [True, False], ids=["aligned", "misaligned"])
def test_gaussian_noise(device: Worker, aligned: bool, dtype: torch.dtype) -> None:
    eps = 1e-4
    for size in SIZES:
        mean = random_tensor((size,), dtype=dtype)
        variance = random_tensor((size,), dtype=dtype, seed=1).square()
        grad = random_tensor((size,), dtype=dtype, seed=2)
        wide = mean.double(), variance.double().requires_grad_()
        truth = reference.gaussian_noise(*wide, eps=eps, seed=SEED, offset=OFFSET)
        (d_truth,) = torch.autograd.grad(truth, wide[1], grad.double())
        truth = truth.detach()
        for op, other, expected, scale in (
            ("gaussian_noise", mean, truth, wide[0].abs() + (truth - wide[0]).abs()),
            ("gaussian_noise_d_variance", grad, d_truth, d_truth),
        ):
            out = Result(device, size, dtype)
            arrays = [placed(a, aligned) for a in (memory(other), memory(variance), out.array)]
            assert device.call(name(op, dtype), state(), eps, *arrays, size) == 0
            assert_rounded(out.tensor(), expected, scale)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("max_blocks", [2, MANY_BLOCKS])
@pytest.mark.parametrize("aligned", [True, False], ids=["aligned", "misaligned"])
def test_concrete_dropout(
    device: Worker, aligned: bool, max_blocks: int, dtype: torch.dtype
) -> None:
    p, temperature = 0.3, 0.5
    wide_logit = torch.from_numpy(logit(p, dtype)).double().requires_grad_()
    computed_in = torch.float64 if dtype == torch.float64 else torch.float32
    for size in SIZES:
        input = random_tensor((size,), dtype=dtype)
        grad = random_tensor((size,), dtype=dtype, seed=1)
        wide = input.double().requires_grad_(), wide_logit
        truth = reference.concrete_dropout(*wide, temperature, seed=SEED, offset=OFFSET)
        d_truth, d_logit_truth = torch.autograd.grad(truth, wide, grad.double())
        scale = (1 + 4.25 / temperature) / (1 - p)  # as in test_concrete_dropout.py
        out = Result(device, size, dtype)
        arrays = placed(memory(input), aligned), placed(out.array, aligned)
        common = state(), logit(p, dtype), temperature
        assert device.call(name("concrete_dropout", dtype), *common, *arrays, size) == 0
        assert_rounded(out.tensor(), truth.detach(), scale * input.double(), ulps=4)
        d_in = Result(device, size, dtype)
        d_logit = Result(device, 1, computed_in)
        partial = Result(device, min(blocks_of(size, dtype), max_blocks), computed_in)
        arrays = [placed(a, aligned) for a in (memory(grad), memory(input), d_in.array)]
        entry = name("concrete_dropout_backward", dtype)
        sums = partial.array, d_logit.array
        assert device.call(entry, *common, *arrays, *sums, size, max_blocks) == 0
        assert_rounded(d_in.tensor(), d_truth, scale * grad.double(), ulps=4)
        terms = scale * grad.double() * input.double() * (1 + 1 / temperature)
        assert_rounded(d_logit.tensor(), d_logit_truth, terms.abs().sum(), ulps=4)
        partial.tensor()


# (size, the mask's stride) of dimensions in memory, outermost first: rows that share, elements of a
# row that do, short rows, channels_last, and dimensions between.
SHARED = {
    "rows": ((7, 0), (130, 1)),
    "columns": ((50, 1), (33, 0)),
    "short rows": ((300, 1), (3, 0)),
    "channels last": ((2, 3), (35, 0), (3, 1)),
    "transposed": ((9, 1), (40, 9)),
    "in between": ((3, 20), (4, 0), (20, 1), (5, 0)),
    "all": ((77, 0),),
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("max_blocks", [1, MANY_BLOCKS])
@pytest.mark.parametrize("aligned", [True, False], ids=["aligned", "misaligned"])
@pytest.mark.parametrize("case", SHARED)
def test_shared_concrete_dropout(
    device: Worker, case: str, aligned: bool, max_blocks: int, dtype: torch.dtype
) -> None:
    """Elements at the same place of the mask have the same uniform number, drawn once."""
    p, temperature = 0.3, 0.5
    dims = SHARED[case]
    places = torch.zeros(1, dtype=torch.int64)
    for size, stride in dims:
        places = (places[:, None] + torch.arange(size) * stride).flatten()
    size, numel = len(places), int(places.max()) + 1
    input, grad = (random_tensor((size,), dtype=dtype, seed=k) for k in range(2))
    wide = input.double(), torch.from_numpy(logit(p, dtype)).double().requires_grad_()
    ones = torch.ones(numel, dtype=torch.float64), wide[1]
    factors = reference.concrete_dropout(*ones, temperature, seed=SEED, offset=OFFSET)[places]
    truth = wide[0] * factors
    (d_logit_truth,) = torch.autograd.grad(truth, wide[1], grad.double())
    factors = factors.detach()
    computed_in = torch.float64 if dtype == torch.float64 else torch.float32
    common = state(), logit(p, dtype), temperature
    dims_array = np.array(dims, np.int64)
    scale = (1 + 4.25 / temperature) / (1 - p)  # as in test_concrete_dropout

    mask, out = Result(device, numel, computed_in), Result(device, size, dtype)
    arrays = placed(memory(input), aligned), placed(out.array, aligned)
    rest = (dims_array, len(dims), *arrays, size, max_blocks)
    entry = name("concrete_dropout_shared", dtype)
    assert device.call(entry, *common, mask.array, numel, *rest) == 0
    mask.tensor()
    assert_rounded(out.tensor(), truth.detach(), scale * input.double(), ulps=4)

    masks = [Result(device, numel, computed_in) for _ in range(2)]
    d_in, d_logit = Result(device, size, dtype), Result(device, 1, computed_in)
    partial = Result(device, min(blocks_of(size, dtype), max_blocks), computed_in)
    tensors = [placed(a, aligned) for a in (memory(grad), memory(input), d_in.array)]
    before = (*(mask.array for mask in masks), numel, dims_array, len(dims))
    sums = partial.array, d_logit.array, size, max_blocks
    entry = name("concrete_dropout_shared_backward", dtype)
    assert device.call(entry, *common, *before, *tensors, *sums) == 0
    assert_rounded(d_in.tensor(), grad.double() * factors, scale * grad.double(), ulps=4)
    terms = scale * grad.double() * input.double() * (1 + 1 / temperature)
    assert_rounded(d_logit.tensor(), d_logit_truth, terms.abs().sum(), ulps=4)
    for result in (*masks, partial):
        result.tensor()


def concrete_on_device(
    device: Worker,
    input: Tensor,
    logit_p: np.ndarray,
    temperature: float,
    grad: Tensor,
) -> list[Tensor]:
    """output, d_input and d_logit of the CUDA kernels."""
    size, dtype = input.numel(), input.dtype
    computed_in = torch.float64 if dtype == torch.float64 else torch.float32
    common = state(), logit_p, temperature
    out, d_in = Result(device, size, dtype), Result(device, size, dtype)
    arrays = memory(input), out.array
    assert device.call(name("concrete_dropout", dtype), *common, *arrays, size) == 0
    partial = Result(device, blocks_of(size, dtype), computed_in)
    d_logit = Result(device, 1, computed_in)
    arrays = memory(grad), memory(input), d_in.array, partial.array, d_logit.array
    entry = name("concrete_dropout_backward", dtype)
    assert device.call(entry, *common, *arrays, size, MANY_BLOCKS) == 0
    return [out.tensor(), d_in.tensor(), d_logit.tensor()]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(("rate", "temperature"), EXTREME_RATES)
def test_extreme_logits_and_temperatures(
    device: Worker, rate: float, temperature: float, dtype: torch.dtype
) -> None:
    input, grad = (random_tensor((300,), dtype=dtype, seed=k) for k in range(2))
    logit_p = np.array([rate], NUMPY_DTYPES[dtype])
    ours = concrete_on_device(device, input, logit_p, temperature, grad)
    assert_concrete_extremes(ours, input, rate, temperature, grad, seed=SEED, offset=OFFSET)


def test_sums_of_more_blocks_than_a_block_has_threads(device: Worker) -> None:
    """As many partial sums, 300, as blocks of the first kernel: the second takes several each."""
    size = 300 * 1024 - 5
    input, grad = random_tensor((size,)), random_tensor((size,), seed=1)
    *_, d_logit = concrete_on_device(device, input, logit(0.3, torch.float32), 0.5, grad)
    wide = input.double(), torch.tensor(logit(0.3, torch.float64)[0]).requires_grad_()
    truth = reference.concrete_dropout(*wide, 0.5, seed=SEED, offset=OFFSET)
    (d_truth,) = torch.autograd.grad(truth, wide[1], grad.double())
    deviation = (grad.double() * truth.detach()).square().sum().sqrt()
    assert abs(d_logit.item() - d_truth.item()) < 1e-3 * deviation


OPERANDS = {
    "gaussian_dropout": ("input", "result"),
    "gaussian_noise": ("mean", "variance", "result"),
    "gaussian_noise_d_variance": ("gradient", "variance", "result"),
    "concrete_dropout": ("input", "result"),
    "concrete_dropout_backward": ("gradient", "input", "result"),
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("op", OPERANDS)
def test_any_one_operand_may_be_misaligned(device: Worker, op: str, dtype: torch.dtype) -> None:
    """The result has the same bits as with all operands aligned."""
    size = 1003
    settings = (logit(0.3, dtype), 0.5) if op.startswith("concrete") else (0.5,)

    def run(odd: str) -> list[Tensor]:
        tensors = [random_tensor((size,), dtype=dtype, seed=k).abs() for k in range(2)]
        inputs = [memory(tensors[k]) for k in range(len(OPERANDS[op]) - 1)]
        results = [Result(device, size, dtype)]
        arrays = zip(OPERANDS[op], [*inputs, results[0].array], strict=True)
        operands = [placed(array, aligned=role != odd) for role, array in arrays]
        rest: tuple[object, ...] = (size,)
        if op.endswith("backward"):
            computed_in = torch.float64 if dtype == torch.float64 else torch.float32
            results.append(Result(device, 1, computed_in))
            partial = Result(device, blocks_of(size, dtype), computed_in)
            rest = (partial.array, results[1].array, size, MANY_BLOCKS)
        assert device.call(name(op, dtype), state(), *settings, *operands, *rest) == 0
        return [result.tensor() for result in results]

    aligned = run("none")
    for odd in OPERANDS[op]:
        for result, expected in zip(run(odd), aligned, strict=True):
            assert torch.equal(result, expected), odd


def blocks_of(size: int, dtype: torch.dtype) -> int:
    """Blocks of 256 threads, each of which takes 4 elements, or 8 of a 16-bit type."""
    chunk = 8 if torch.empty(0, dtype=dtype).element_size() == 2 else 4
    return -(-size // (256 * chunk))


def test_no_elements_have_no_gradient(device: Worker) -> None:
    d_logit = np.full(1, np.nan, np.float32)
    empty = np.zeros(0, np.float32)
    arguments = state(), logit(0.3, torch.float32), 0.5, *[empty] * 4, d_logit, 0, MANY_BLOCKS
    assert device.call("concrete_dropout_backward_float32", *arguments) == 0
    assert d_logit[0] == 0
    assert device.call("normal_noise_float32", state(), empty, 0, 0, MANY_BLOCKS) == 0


def test_special_values(device: Worker) -> None:
    """Nothing is dropped: what is not finite stays so. A mask of NaN makes everything NaN."""
    input = torch.ones(300)
    input[[5, 130, 299]] = torch.tensor([math.nan, math.inf, -math.inf])
    out = Result(device, 300, torch.float32)
    assert device.call("gaussian_dropout_float32", state(), 0.5, memory(input), out.array, 300) == 0
    assert torch.equal(out.tensor().isfinite(), input.isfinite())
    nan = np.full(1, np.nan, np.float32)
    arguments = state(), nan, 0.5, memory(torch.ones(300)), out.array, 300
    assert device.call("concrete_dropout_float32", *arguments) == 0
    assert out.tensor().isnan().all()
    for value in (-80.0, 40.0):
        extreme = np.full(1, value, np.float32)
        arguments = state(), extreme, 0.1, memory(torch.ones(300)), out.array, 300
        assert device.call("concrete_dropout_float32", *arguments) == 0
        assert out.tensor().isfinite().all()
