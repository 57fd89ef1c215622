"""`fused-dropout verify` passes on what is installed, and fails on every way of breaking it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import fused_dropout
from fused_dropout._core import extension
from fused_dropout._tools.cli import main
from fused_dropout._tools.verify import command, dropconnect, mask
from fused_dropout._tools.verify.checks import Check, Outcome, Row, Settings, Target, run_check

ChecksOf = Callable[[Settings], Iterator[Check]]

REAL_MASK = fused_dropout.mask
REAL_OP = dropconnect.dropconnect_linear


FASTEST = Target(extension.available_isas()[0], "cpu")
# A device of another name, so that it gets the checks of a GPU.
LIKE_A_GPU = Target("cuda", "cpu:0")


def rows(
    checks_of: ChecksOf, what: str, dtype: str | None = None, target: Target = FASTEST
) -> list[Row]:
    """Run the quick checks of one kind, on one implementation only."""
    settings = Settings(quick=True, seed=0, targets=(target,))
    chosen = [
        run_check(check)
        for check in checks_of(settings)
        if check.what == what and dtype in (None, check.dtype)
    ]
    assert chosen
    return chosen


def dropconnect_row(what: str, dtype: str | None = None) -> Row:
    return rows(dropconnect.dropconnect_checks, what, dtype)[0]


def test_the_installed_package_passes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", "--quick"]) == 0
    shown = capsys.readouterr().out
    assert "verify ok" in shown
    assert "FAILED" not in shown
    for isa in extension.available_isas():
        assert isa in shown
    if not torch.cuda.is_available():
        assert "not checked" in shown


def test_the_cuda_kernels_pass(cuda: torch.device, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", "--quick", "--device", "cuda"]) == 0
    shown = capsys.readouterr().out
    assert "verify ok" in shown and "bits = CPU's" in shown
    assert not any(isa in shown for isa in extension.available_isas())


def test_device_chooses_what_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extension, "cuda_obstacle", lambda: None)
    cpu, _ = command.find_targets("cpu")
    assert [target.name for target in cpu] == list(extension.available_isas())
    assert command.find_targets("cuda") == ((Target("cuda", "cuda"),), [])
    assert command.find_targets() == ((*cpu, Target("cuda", "cuda")), [])


@pytest.mark.parametrize(
    ("built_with", "text"),
    [("", "no CUDA in this build; rebuild with FUSED_DROPOUT_CUDA=1"), ("13.0", "no GPU; torch")],
)
def test_cuda_that_cannot_be_checked_is_a_bad_argument(
    built_with: str, text: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(extension, "build_info", lambda: {"cuda": built_with})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["verify", "--device", "cuda"]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1
    assert f"--device cuda: {text}" in captured.err


@pytest.mark.parametrize(
    ("checks_of", "what"),
    [
        (mask.mask_checks, "bits = CPU's, large"),
        (dropconnect.dropconnect_checks, "masks = CPU's"),
        (dropconnect.dropconnect_checks, "again = the same"),
    ],
)
def test_a_gpu_s_checks_pass_on_the_cpu_kernels(checks_of: ChecksOf, what: str) -> None:
    (row,) = rows(checks_of, what, target=LIKE_A_GPU)
    assert row.ok is True and row.worst == 0 and row.cases > 5


def test_another_mask_on_a_gpu_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def other_there(shape: tuple[int, ...], p: float, **keywords: Any) -> Tensor:
        draw = REAL_MASK if keywords["device"] == "cpu" else flip_one_bit
        return draw(shape, p, **keywords)

    monkeypatch.setattr(fused_dropout, "mask", other_there)
    (row,) = rows(mask.mask_checks, "bits = CPU's, large", target=LIKE_A_GPU)
    assert row.ok is False and "shape=" in row.note


def test_other_stored_masks_on_a_gpu_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = itertools.count()

    class Operators:
        @staticmethod
        def dropconnect_mask_bits(*arguments: Any) -> Tensor:
            bits = torch.ops.fused_dropout.dropconnect_mask_bits(*arguments)
            bits.view(-1)[0] ^= next(calls) % 2  # here, there, here, ...
            return bits

    monkeypatch.setattr(extension, "operators", Operators)
    (row,) = rows(dropconnect.dropconnect_checks, "masks = CPU's", target=LIKE_A_GPU)
    assert row.ok is False and "sizes=" in row.note


def test_a_layer_that_differs_from_run_to_run_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = itertools.count()

    def drifts(*arguments: Any, **keywords: Any) -> Tensor:
        return REAL_OP(*arguments, **keywords) * (1 + next(calls))

    monkeypatch.setattr(dropconnect, "dropconnect_linear", drifts)
    (row,) = rows(dropconnect.dropconnect_checks, "again = the same", target=LIKE_A_GPU)
    assert row.ok is False and row.note


def flip_one_bit(shape: tuple[int, ...], p: float, **keywords: Any) -> Tensor:
    bits = REAL_MASK(shape, p, **keywords)
    if bits.numel() > 1000:
        bits.view(-1)[777] ^= True
    return bits


def test_one_flipped_bit_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused_dropout, "mask", flip_one_bit)
    (row,) = rows(mask.mask_checks, "bits = reference")
    assert row.ok is False
    assert row.worst == math.inf
    assert "shape=" in row.note


def test_wrong_packed_tail_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    real = fused_dropout.packed_mask

    def tail_not_cleared(shape: tuple[int, ...], p: float, **keywords: Any) -> Tensor:
        words = real(shape, p, **keywords).view(torch.int32)
        return (words | -(2**31)).view(torch.uint32)

    monkeypatch.setattr(fused_dropout, "packed_mask", tail_not_cleared)
    (row,) = rows(mask.mask_checks, "words = reference")
    assert row.ok is False


@pytest.mark.parametrize(
    ("what", "broken"),
    [
        ("keep rate", lambda shape, p, **k: REAL_MASK(shape, 0.99 * p, **k)),
        (
            "rows and columns independent",
            lambda shape, p, **k: REAL_MASK((1, shape[1]), p, **k).expand(shape),
        ),
        (
            "seeds, offsets, streams independent",
            lambda shape, p, **k: REAL_MASK(shape, p, **{**k, "offset": 0}),
        ),
    ],
)
def test_statistics_notice(
    what: str, broken: Callable[..., Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fused_dropout, "mask", broken)
    (row,) = rows(mask.mask_checks, what)
    assert row.ok is False
    assert "standard deviations" in row.note


class ScaleGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient * (1 + 1e-4)


class ConstantGradient(torch.autograd.Function):
    """A cube whose gradient is right and does not say that it depends on the input."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        ctx.slope = 3 * tensor.detach() ** 2
        return tensor**3

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient * ctx.slope


def wrong_gradient(input: Tensor, weight: Tensor, *rest: Any, **keywords: Any) -> Tensor:
    return REAL_OP(input, ScaleGradient.apply(weight), *rest, **keywords)


def wrong_second_gradient(input: Tensor, *rest: Any, **keywords: Any) -> Tensor:
    return REAL_OP(input, *rest, **keywords) + ConstantGradient.apply(input).sum()


def one_connection_too_many(input: Tensor, weight: Tensor, *rest: Any, **keywords: Any) -> Tensor:
    return REAL_OP(input, weight, *rest, **keywords) + input[..., :1] * weight[0, 0] * 0.5


def scaled_by_nominal_rate(*arguments: Any, p: float = 0.5, **keywords: Any) -> Tensor:
    output = REAL_OP(*arguments, **{**keywords, "p": p})
    realised = fused_dropout.reference.keep_rate(p)
    return output * (realised / (1 - p)) if 0 < p < 1 else output


def not_a_number(*arguments: Any, **keywords: Any) -> Tensor:
    return REAL_OP(*arguments, **keywords) * math.nan


def depends_on_threads(*arguments: Any, **keywords: Any) -> Tensor:
    return REAL_OP(*arguments, **keywords) * torch.get_num_threads()


def depends_on_storage(*arguments: Any, mask_storage: str = "auto", **keywords: Any) -> Tensor:
    output = REAL_OP(*arguments, mask_storage=mask_storage, **keywords)
    return output if mask_storage == "packed" else -output


def ignores_strides(input: Tensor, weight: Tensor, *rest: Any, **keywords: Any) -> Tensor:
    return REAL_OP(input, weight, *rest, **keywords) * (1 if weight.is_contiguous() else 2)


def ignores_rng_state(*arguments: Any, **keywords: Any) -> Tensor:
    return REAL_OP(*arguments, **{**keywords, "rng_state": None, "seed": keywords.get("seed", 1)})


def one_mask_for_all(*arguments: Any, **keywords: Any) -> Tensor:
    return REAL_OP(*arguments, **{**keywords, "mask": "batch"})


def not_rescaled(*arguments: Any, **keywords: Any) -> Tensor:
    return REAL_OP(*arguments, **{**keywords, "convention": "paper"})


@pytest.mark.parametrize(
    ("what", "dtype", "broken"),
    [
        ("output, gradients", "float32", one_connection_too_many),
        ("output, gradients", "bfloat16", one_connection_too_many),
        ("output, gradients", "float32", wrong_gradient),
        ("output, gradients", "float64", scaled_by_nominal_rate),
        ("output, gradients", "float16", not_a_number),
        ("eval mode", "float32", one_connection_too_many),
        ("gradcheck", None, wrong_gradient),
        ("gradgradcheck", None, wrong_second_gradient),
        ("regenerate = packed", None, depends_on_storage),
        ("strided = contiguous", None, ignores_strides),
        ("rng_state = seed, offset", None, ignores_rng_state),
        ("1 thread = 2 threads", None, depends_on_threads),
        ("mean of output = dense", None, not_rescaled),
        ("variance of output", None, one_mask_for_all),
    ],
)
def test_a_broken_layer_fails(
    what: str, dtype: str | None, broken: Callable[..., Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dropconnect, "dropconnect_linear", broken)
    row = dropconnect_row(what, dtype)
    assert row.ok is False
    assert row.worst > 1
    assert row.note


def test_an_exception_is_a_failure_and_is_shown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def explode() -> Outcome:
        raise RuntimeError("kernel [0] exploded")

    check = Check("op", "what", "isa", "float32", explode)
    monkeypatch.setattr(command, "_all_checks", lambda settings: [check])
    assert main(["verify"]) == 1
    shown = capsys.readouterr().out
    assert "RuntimeError: kernel [0] exploded" in shown
    assert "0 checks passed, 1 failed" in shown


def test_a_check_without_cases_fails() -> None:
    row = run_check(Check("op", "what", "isa", "float32", Outcome))
    assert row.ok is False
    assert row.note == "no case ran"


def test_what_cannot_be_checked_is_no_pass(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(command, "_all_checks", lambda settings: [])
    assert main(["verify"]) == 0
    shown = capsys.readouterr().out
    assert "0 checks passed, 0 failed; cuda not checked (no" in shown


def test_thread_count_is_restored() -> None:
    before = torch.get_num_threads()
    with command.thread_count(before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before


def test_no_false_alarm_for_other_seeds() -> None:
    for seed in range(1, 6):
        settings = Settings(quick=True, seed=seed, targets=(FASTEST,))
        for check in mask.mask_checks(settings):
            if "reference" not in check.what:
                assert run_check(check).ok is True
