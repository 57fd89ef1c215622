"""Checks of `dropconnect_linear`: errors, invariances, gradients, statistics.

Errors follow flash-attention's criterion. The truth is the reference in float64 on the same,
already rounded, inputs. Our largest error may be twice torch's own in the dtype under test, plus a
floor of two units in the last place of the largest value. Torch's own error is the larger one of
the reference run in that dtype (sums pairwise) and the layer written with torch.bmm (sums in the
order of a matrix product). In float64 no wider dtype holds the truth, so the bound is the one that
holds for sums in any order.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from fused_dropout import reference
from fused_dropout._core import extension
from fused_dropout._core.rates import CONVENTIONS, Convention
from fused_dropout._core.rng import make_rng_state
from fused_dropout._tools.common import thread_count
from fused_dropout._tools.table import DTYPES, op_named
from fused_dropout._tools.verify.checks import Check, Outcome, Settings, Target
from fused_dropout._tools.verify.errors import error_bound, error_ratio, largest
from fused_dropout._tools.verify.statistics import one_per_device, statistical_outcome
from fused_dropout.functional._dropconnect import MaskMode

_ROW = op_named("dropconnect_linear")
_OP, dropconnect_linear = _ROW.name, _ROW.function
_MASKS: tuple[MaskMode | int, ...] = tuple(
    dict.fromkeys(dict(case)["mask"] for case in _ROW.settings)
)
_STORAGES = tuple(dict.fromkeys(dict(case)["mask_storage"] for case in _ROW.settings))
_PS = (0.5, 0.1, 0.25, 0.3, 0.9, 0.0, 1.0)
_SHAPES: tuple[tuple[tuple[int, ...], int, int], ...] = (  # leading, out_features, in_features
    ((6,), 5, 33),
    ((2, 3), 17, 129),
    ((9,), 40, 128),
    ((3, 2, 2), 12, 257),
    ((), 7, 96),
    ((5,), 33, 31),
    ((1,), 1, 1),
    ((0,), 4, 8),
    ((7,), 3, 1000),
)
_LARGE_SHAPE = ((21,), 70, 1100)
_FLOOR_ULPS = 2
# Rows that share a mask with so many others go to torch's product, whose last bits may depend on
# the number of threads: `fewest_rows` in csrc/cpu/dropconnect_shared.cpp, the least of all dtypes.
_FEWEST_ROWS_OF_A_PRODUCT = {"avx512": 16, "avx2": 8, "plain": 2}
_QUANTITIES = ("output", "d_input", "d_weight", "d_bias")


@dataclass(frozen=True)
class _Case:
    leading: tuple[int, ...]
    out_features: int
    in_features: int
    p: float
    mask: MaskMode | int
    convention: Convention
    bias: bool
    seed: int
    offset: int

    def keywords(self) -> dict[str, Any]:
        return {"p": self.p, "mask": self.mask, "convention": self.convention}


@dataclass(frozen=True)
class _Inputs:
    """Leaves that require grad, and the gradient of the output."""

    input: Tensor
    weight: Tensor
    bias: Tensor | None
    d_output: Tensor

    def leaves(self) -> list[Tensor]:
        return [leaf for leaf in (self.input, self.weight, self.bias) if leaf is not None]

    def to(self, where: torch.dtype | str) -> _Inputs:
        return self._map(lambda tensor: tensor.to(where))

    def absolute(self) -> _Inputs:
        return self._map(torch.abs)

    def strided(self) -> _Inputs:
        return self._map(_strided)

    def _map(self, change: Callable[[Tensor], Tensor]) -> _Inputs:
        def leaf(tensor: Tensor) -> Tensor:
            return change(tensor.detach()).requires_grad_()

        bias = None if self.bias is None else leaf(self.bias)
        return _Inputs(leaf(self.input), leaf(self.weight), bias, change(self.d_output))


def dropconnect_checks(settings: Settings) -> Iterator[Check]:
    """Every check of `dropconnect_linear`."""
    cases = _cases(settings)
    for target, dtype in itertools.product(settings.targets, DTYPES):
        name = str(dtype).removeprefix("torch.")
        yield Check(
            _OP, "output, gradients", target.name, name, partial(_errors, target, dtype, cases)
        )
        yield Check(_OP, "eval mode", target.name, name, partial(_eval_errors, target, dtype))
    for target in settings.targets:
        for what, check in (
            ("regenerate = packed", _storages_agree),
            ("strided = contiguous", _strides_agree),
            ("rng_state = seed, offset", _states_agree),
        ):
            yield Check(_OP, what, target.name, "all", partial(check, target, settings.seed))
        for gradient_check in (torch.autograd.gradcheck, torch.autograd.gradgradcheck):
            run = partial(_gradients_check, gradient_check, target, settings.seed)
            yield Check(_OP, gradient_check.__name__, target.name, "float64", run)
        if target.device == "cpu":
            run = partial(_threads_agree, target, settings.seed)
            yield Check(_OP, "1 thread = 2 threads", target.name, "all", run)
        else:
            for what, check in (("masks = CPU's", _masks_agree), ("again = the same", _runs_agree)):
                yield Check(_OP, what, target.name, "all", partial(check, target, settings.seed))
    for target in one_per_device(settings.targets):
        for index, what in enumerate(("mean of output = dense", "variance of output")):
            scores = partial(_moments_z, target, settings, index)
            yield Check(_OP, what, target.name, "float32", partial(statistical_outcome, scores))


def _cases(settings: Settings) -> list[_Case]:
    shapes = itertools.cycle(_SHAPES)
    per_setting = 1 if settings.quick else len(_SHAPES)
    cases = [
        _Case(
            *shape, p=p, mask=mask, convention=convention, bias=number % 3 != 2,
            seed=settings.seed + 2**33 + number, offset=4 * number,
        )
        for number, (mask, p, convention) in enumerate(
            itertools.product(_MASKS, _PS, CONVENTIONS)
        )
        for shape in itertools.islice(shapes, per_setting)
    ]  # fmt: skip
    if not settings.quick:
        cases += [
            _Case(
                *_LARGE_SHAPE, p=p, mask=mask, convention="inverted", bias=True,
                seed=settings.seed, offset=0,
            )
            for mask, p in itertools.product(_MASKS, (0.5, 0.1))
        ]  # fmt: skip
    return cases


@cache
def _inputs(case: _Case, dtype: torch.dtype) -> _Inputs:
    draw = torch.Generator().manual_seed(case.seed)
    features = case.in_features

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw, dtype=torch.float64).to(dtype)

    return _Inputs(
        normal(*case.leading, features).requires_grad_(),
        normal(case.out_features, features).requires_grad_(),
        normal(case.out_features).requires_grad_() if case.bias else None,
        normal(*case.leading, case.out_features),
    )


def _with_gradients(output: Tensor, inputs: _Inputs) -> list[Tensor]:
    """[output, d_input, d_weight, d_bias if there is a bias], all on the CPU."""
    gradients = torch.autograd.grad(output, inputs.leaves(), inputs.d_output)
    return [tensor.detach().cpu() for tensor in (output, *gradients)]


def _reference_results(case: _Case, inputs: _Inputs) -> list[Tensor]:
    output = reference.dropconnect_linear(
        inputs.input, inputs.weight, inputs.bias,
        seed=case.seed, offset=case.offset, **case.keywords(),
    )  # fmt: skip
    return _with_gradients(output, inputs)


def _our_results(case: _Case, inputs: _Inputs, storage: str = "auto") -> list[Tensor]:
    output = dropconnect_linear(
        inputs.input, inputs.weight, inputs.bias, mask_storage=storage,
        rng_state=make_rng_state(case.seed, case.offset, inputs.input.device), **case.keywords(),
    )  # fmt: skip
    return _with_gradients(output, inputs)


@cache
def _truth_and_bounds(case: _Case, dtype: torch.dtype) -> list[tuple[Tensor, float]]:
    """Per quantity: the truth in float64, and the largest error that passes."""
    inputs = _inputs(case, dtype)
    truth = _reference_results(case, inputs.to(torch.float64))
    if dtype == torch.float64:
        return list(zip(truth, _summation_bounds(case), strict=True))
    candidates = [_reference_results(case, inputs), _matrix_product_results(case, inputs)]
    return [
        (exact, error_bound([own[index] for own in candidates], exact, _FLOOR_ULPS))
        for index, exact in enumerate(truth)
    ]


def _summation_bounds(case: _Case) -> list[float]:
    """How far apart two float64 sums of the same terms in different orders can be.

    Each is within n u sum |terms| of the exact one, u = eps / 2 (Higham 2002, "Accuracy and
    stability of numerical algorithms", section 4.2); run on absolute values, the reference
    gives sum |terms|.
    """
    terms = max(case.in_features, case.out_features, math.prod(case.leading)) + _FLOOR_ULPS
    factor = terms * torch.finfo(torch.float64).eps
    inputs = _inputs(case, torch.float64).absolute()
    return [factor * largest(total) for total in _reference_results(case, inputs)]


def _matrix_product_results(case: _Case, inputs: _Inputs) -> list[Tensor]:
    """The layer as people write it. Its sums run in the order of torch's matrix product."""
    rows = inputs.input.reshape(math.prod(case.leading), case.in_features)
    share = reference.rows_per_mask(inputs.input.shape, case.mask)
    which = torch.arange(rows.shape[0]) // share
    shape = (-(-rows.shape[0] // share), case.out_features)
    source: dict[str, Any] = {"seed": case.seed, "offset": case.offset}
    kept = reference.mask((*shape, case.in_features), case.p, **source)
    output = torch.bmm((inputs.weight * kept)[which], rows[:, :, None])[:, :, 0]
    if inputs.bias is not None:
        kept_bias = reference.mask(shape, case.p, stream=1, **source)
        output = output + (inputs.bias * kept_bias)[which]
    q = reference.keep_rate(case.p)
    if case.convention == "inverted" and q > 0:
        output = output / q
    return _with_gradients(output.reshape(inputs.d_output.shape), inputs)


def _errors(target: Target, dtype: torch.dtype, cases: list[_Case]) -> Outcome:
    outcome = Outcome()
    for case, storage in itertools.product(cases, _STORAGES):
        expected = _truth_and_bounds(case, dtype)
        with target.active():
            results = _our_results(case, _inputs(case, dtype).to(target.device), storage)
        for name, ours, (truth, bound) in zip(_QUANTITIES, results, expected, strict=False):
            outcome.add(error_ratio(ours, truth, bound, dtype), f"{name}, {storage}, {case}")
    return outcome


def _eval_errors(target: Target, dtype: torch.dtype) -> Outcome:
    outcome = Outcome()
    for shape, p, convention in itertools.product(_SHAPES, (0.3, 1.0), CONVENTIONS):
        case = _Case(*shape, p, "example", convention, bias=True, seed=1, offset=0)
        inputs = _inputs(case, dtype)
        wide = inputs.to(torch.float64)
        keywords = {**case.keywords(), "seed": case.seed, "training": False}
        truth = reference.dropconnect_linear(wide.input, wide.weight, wide.bias, **keywords)
        torchs = reference.dropconnect_linear(inputs.input, inputs.weight, inputs.bias, **keywords)
        there = inputs.to(target.device)
        with target.active():
            ours = dropconnect_linear(there.input, there.weight, there.bias, **keywords)
        truth, torchs, ours = truth.detach(), torchs.detach(), ours.detach().cpu()
        outcome.add(
            error_ratio(ours, truth, error_bound([torchs], truth, _FLOOR_ULPS), dtype), case
        )
    return outcome


def _invariance_cases(seed: int) -> list[tuple[_Case, torch.dtype]]:
    """Larger than a cache block and than one thread's share, and no multiple of anything."""
    return [
        (_Case((5, 7), 65, 260, p, mask, "inverted", bias=True, seed=seed, offset=12), dtype)
        for mask, p, dtype in itertools.product(_MASKS, (0.5, 0.1), DTYPES)
    ]


def _same(left: list[Tensor], right: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


def _storages_agree(target: Target, seed: int) -> Outcome:
    outcome = Outcome()
    for case, dtype in _invariance_cases(seed):
        inputs = _inputs(case, dtype).to(target.device)
        with target.active():
            first, second = (_our_results(case, inputs, storage) for storage in _STORAGES)
        outcome.add_exact(_same(first, second), f"{case}, {dtype}")
    return outcome


def _strides_agree(target: Target, seed: int) -> Outcome:
    outcome = Outcome()
    for case, dtype in _invariance_cases(seed):
        inputs = _inputs(case, dtype).to(target.device)
        with target.active():
            same = _same(_our_results(case, inputs), _our_results(case, inputs.strided()))
        outcome.add_exact(same, f"{case}, {dtype}")
    return outcome


def _strided(tensor: Tensor) -> Tensor:
    """The same values with the dimensions laid out in reverse and a gap after each element."""
    shape = (*reversed(tensor.shape), 2)
    spread = torch.full(shape, math.nan, dtype=tensor.dtype, device=tensor.device)
    view = spread[..., 0].permute(*reversed(range(tensor.dim())))
    return view.copy_(tensor)


def _states_agree(target: Target, seed: int) -> Outcome:
    outcome = Outcome()
    for case, dtype in _invariance_cases(seed):
        inputs = _inputs(case, dtype).to(target.device)
        case = replace(case, offset=0)
        with target.active():
            output = dropconnect_linear(
                inputs.input, inputs.weight, inputs.bias, seed=case.seed, **case.keywords()
            )
            same = _same(_our_results(case, inputs), _with_gradients(output, inputs))
        outcome.add_exact(same, f"{case}, {dtype}")
    return outcome


def _threads_agree(target: Target, seed: int) -> Outcome:
    outcome = Outcome()
    for case, dtype in _invariance_cases(seed):
        inputs = _inputs(case, dtype)
        share = reference.rows_per_mask(inputs.input.shape, case.mask)
        if share >= _FEWEST_ROWS_OF_A_PRODUCT[target.name]:
            continue
        results = []
        for threads in (1, 2):
            with thread_count(threads), target.active():
                results.append(_our_results(case, inputs))
        outcome.add_exact(_same(*results), f"{case}, {dtype}")
    return outcome


def _masks_agree(target: Target, seed: int) -> Outcome:
    """The masks that forward stores for backward are those that the CPU kernels store."""
    outcome = Outcome()
    draw = extension.operators().dropconnect_mask_bits
    for sizes, p in itertools.product(((1, 1, 1), (5, 65, 260), (300, 17, 1100)), _PS):
        masks, *matrix = sizes
        here = draw(torch.empty(matrix), make_rng_state(seed, 12, "cpu"), masks, p)
        weight = torch.empty(matrix, device=target.device)
        with target.active():
            there = draw(weight, make_rng_state(seed, 12, target.device), masks, p)
        outcome.add_exact(torch.equal(there.cpu(), here), f"sizes={sizes}, p={p}")
    return outcome


def _runs_agree(target: Target, seed: int) -> Outcome:
    """Running once more gives the same bits: no sum depends on which block ends first."""
    outcome = Outcome()
    for case, dtype in _invariance_cases(seed):
        inputs = _inputs(case, dtype).to(target.device)
        with target.active():
            first, again = _our_results(case, inputs), _our_results(case, inputs)
        outcome.add_exact(_same(first, again), f"{case}, {dtype}")
    return outcome


def _gradients_check(check: Callable[..., bool], target: Target, seed: int) -> Outcome:
    """`check` is torch.autograd.gradcheck or gradgradcheck; they raise on a difference."""
    outcome = Outcome()
    for mask, convention, storage in itertools.product(_MASKS, CONVENTIONS, _STORAGES):
        case = _Case((2, 2), 3, 5, 0.3, mask, convention, bias=True, seed=seed, offset=0)
        inputs = _inputs(case, torch.float64).to(target.device)
        op = partial(dropconnect_linear, seed=case.seed, mask_storage=storage, **case.keywords())
        with target.active():
            # The op is linear in each argument, so long steps make the differences exact.
            agrees = check(op, inputs.leaves(), eps=1e-2, atol=1e-9, rtol=1e-9)
        outcome.add_exact(agrees, f"{case}, {storage}")
    return outcome


def _moments_z(target: Target, settings: Settings, index: int) -> list[tuple[str, float]]:
    """Scores of the mean (index 0) or the variance (index 1) of each output over many masks.

    With c_i = w_i x_i for each connection and c_0 = b, the output is the sum of c_i B_i / q, with
    B_i independent Bernoulli(q): mean sum c_i, variance (1-q)/q sum c_i^2, fourth cumulant
    (1-q) (1 - 6 q (1-q)) / q^3 sum c_i^4.
    """
    rows, out_features, in_features = 4096, 16, 64
    draw = torch.Generator().manual_seed(settings.seed)
    weight = torch.randn(out_features, in_features, generator=draw)
    bias = torch.randn(out_features, generator=draw)
    row = torch.randn(in_features, generator=draw)
    terms = torch.cat([weight.double() * row.double(), bias.double()[:, None]], dim=1)
    scores = []
    for p in (0.1, 0.5, 0.9):
        with target.active():
            output = dropconnect_linear(
                row.expand(rows, in_features).to(target.device),
                weight.to(target.device), bias.to(target.device),
                p=p, mask="row", seed=settings.seed,
            ).cpu().double()  # fmt: skip
        q = reference.keep_rate(p)
        variance = (1 - q) / q * terms.square().sum(1)
        fourth = (1 - q) * (1 - 6 * q * (1 - q)) / q**3 * terms.pow(4).sum(1)
        error = output - terms.sum(1)
        mean_z = error.mean(0) / (variance / rows).sqrt()
        variance_z = (error.square().mean(0) - variance) / (
            (fourth + 2 * variance.square()) / rows
        ).sqrt()
        chosen = (mean_z, variance_z)[index].tolist()
        scores += [(f"p={p}, output {unit}", float(z)) for unit, z in enumerate(chosen)]
    return scores
