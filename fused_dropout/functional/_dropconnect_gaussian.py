"""DropConnect's inference by Gaussian pre-activations (Wan et al. 2013, Algorithm 2)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, is_autocast_enabled, is_grad_enabled
from torch.overrides import handle_torch_function, has_torch_function
from torch.utils.checkpoint import checkpoint

from fused_dropout._core import checks, extension
from fused_dropout._core.linear_operands import autocast_operands, check_tensors
from fused_dropout._core.private_torch import transforms_active
from fused_dropout._core.rates import Convention, keep_rate
from fused_dropout._core.rng import check_single_source, rng_state_on_device
from fused_dropout.functional._dropconnect_moments import dropconnect_moments

ActivationName = Literal["relu", "gelu", "silu", "sigmoid", "tanh"]
Activation = ActivationName | Callable[[Tensor], Tensor]
RELU: ActivationName = "relu"
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    RELU: F.relu,
    "gelu": F.gelu,
    "silu": F.silu,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
}
SAMPLES = 1000  # as in the paper's experiments

# Normals that are drawn at once, of one sample at least: on the CPU what stays in level-2 cache, on
# a GPU what fills it with work. While torch.compile traces, every chunk is a part of the graph.
_CHUNK_ELEMENTS = {"cpu": 1 << 17, "cuda": 1 << 22}
_MOST_TRACED_CHUNKS = 8
_BLOCK = 128  # normal_noise can start at multiples of it


def dropconnect_gaussian(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    p: float = 0.5,
    activation: Activation = "relu",
    samples: int | None = SAMPLES,
    *,
    generator: torch.Generator | None = None,
    seed: int | None = None,
    rng_state: Tensor | None = None,
    convention: Convention = "inverted",
    mask_bias: bool = True,
) -> Tensor:
    r"""The mean activation of a DropConnect layer over its masks, by Gaussian pre-activations.

    By the central limit theorem a unit's pre-activation, a sum of many masked products, is close to
    a normal number with the moments of :func:`dropconnect_moments`. With Z samples,

    .. math:: out = \frac{1}{Z} \sum_{k=1}^{Z} activation(mean + \sqrt{variance} \; z_k),
        \quad z_k \sim N(0, 1)

    z is :func:`fused_dropout.normal_noise` of shape ``[samples, ..., out_features]``. It is drawn,
    and the activations are averaged, a part at a time: whatever ``samples`` is, a call takes memory
    for four times 2^17 numbers (2^22 on a GPU), or for four samples where these are larger. For
    gradients of more samples every part is computed again; torch.func's transforms and
    torch.compile, which makes at most 8 parts, keep all of them instead. Sums over samples are kept
    in float32 within a part and in float64 over the parts.

    Source: Wan, Zeiler, Zhang, LeCun and Fergus, "Regularization of Neural Networks using
    DropConnect", ICML 2013, section 3.2 and Algorithm 2.

    Args:
        input: ``[..., in_features]``, float32, bfloat16, float16 or float64; any strides.
        weight: ``[out_features, in_features]``, same dtype and device.
        bias: ``[out_features]`` or None.
        p: drop probability in [0, 1], as in :func:`dropconnect_linear`. Where it drops nothing or
            everything, the result is the activation of the mean, and nothing is drawn.
        activation: a callable of one tensor, called with ``[some samples, ..., out_features]`` of
            the input's dtype; or ``"relu"``, ``"gelu"``, ``"silu"``, ``"sigmoid"``, ``"tanh"``.
        samples: Z, at least 1; None is the exact mean, of ``"relu"`` alone: see
            :func:`expected_relu`.
        generator: draws the random state; default: torch's generator of the input's device.
        seed: an int that makes the call a pure function of its arguments: it uses the noise of seed
            ``seed`` and offset 0.
        rng_state: int64 tensor ``[2]`` (seed, offset), which does the same for any offset; see
            :func:`fused_dropout.make_rng_state`.
        convention: that of the layer in training: ``"inverted"`` divides by the keep rate,
            ``"paper"`` does not.
        mask_bias: whether the bias is masked, and scaled, too.

    Returns:
        A tensor of the shape of the activation of one sample, in the input's dtype; differentiable
        in input, weight and bias.

    Raises:
        ValueError: p, activation, samples or convention out of range; more than one of generator,
            seed and rng_state.
        RuntimeError: shapes, dtypes or devices that do not fit; no kernels for the device.
        TypeError: an argument of the wrong type; an activation that returns no tensor.

    Example:
        >>> from fused_dropout import functional as F
        >>> x, weight = torch.tensor([1.0, 2.0]), torch.tensor([[3.0, -1.0]])
        >>> F.dropconnect_gaussian(x, weight, p=0.5, samples=100_000, seed=1)
        tensor([1.9932])
        >>> F.dropconnect_gaussian(x, weight, p=0.5, samples=None)
        tensor([1.9934])
    """
    if has_torch_function((input, weight, bias)):
        average: Tensor = handle_torch_function(
            dropconnect_gaussian,
            (input, weight, bias),
            input,
            weight,
            bias,
            p,
            activation,
            samples,
            generator=generator,
            seed=seed,
            rng_state=rng_state,
            convention=convention,
            mask_bias=mask_bias,
        )
        return average
    p = checks.check_probability(p)
    function = check_activation(activation)
    if samples is not None:
        samples = checks.check_int(samples, "samples", 1)
    elif activation != RELU:
        raise ValueError(f"samples=None needs activation={RELU!r}, got {activation!r}")
    check_single_source(generator, seed, rng_state)
    if is_autocast_enabled("cpu") or is_autocast_enabled("cuda"):
        check_tensors(input, weight, bias)
        input, weight, bias = autocast_operands(input, weight, bias)
    mean, variance = dropconnect_moments(
        input, weight, bias, p, convention=convention, mask_bias=mask_bias
    )
    if samples is None:
        return expected_relu(mean, variance).to(input.dtype)
    activate = partial(_activate, function, input.dtype)
    if not 0.0 < keep_rate(p) < 1.0 or mean.numel() == 0:
        return activate(mean).to(input.dtype)
    state = rng_state_on_device(mean, generator, seed, rng_state)
    average = _average(mean, _deviation(variance), activate, samples, state)
    # Through one dimension: its gradient comes back dense, and so do its sums in one order.
    return average.flatten().view(average.shape).to(input.dtype)


def expected_relu(mean: Tensor, variance: Tensor) -> Tensor:
    r"""The mean of max(0, y) for normal y of the given mean and variance, element by element.

    .. math:: out = mean \, \Phi(t) + \sqrt{variance} \, \phi(t), \quad t = mean / \sqrt{variance}

    It is computed in float64 (float32 for 16-bit operands) and rounded once. No digits cancel in
    the tails: a float32 is as close as it can be, a float64 within t^2 units in the last place.
    Where the variance is 0 it is ``relu(mean)``, and its gradient that of relu.

    Args:
        mean: any shape and strides; float32, bfloat16, float16 or float64.
        variance: the shape, dtype and device of ``mean``; at least 0.

    Returns:
        A tensor of the shape and dtype of ``mean``, differentiable any number of times.

    Raises:
        RuntimeError: shapes, dtypes or devices that do not fit.
        TypeError: an argument of the wrong type.

    Example:
        >>> from fused_dropout import functional as F
        >>> F.expected_relu(torch.tensor([0.0, 2.0, 2.0]), torch.tensor([1.0, 0.0, 9.0]))
        tensor([0.3989, 2.0000, 2.4534])
    """
    if has_torch_function((mean, variance)):
        expected: Tensor = handle_torch_function(expected_relu, (mean, variance), mean, variance)
        return expected
    for tensor, name in ((mean, "mean"), (variance, "variance")):
        checks.check_dense(tensor, name)
        checks.check_float_tensor(tensor, name)
    checks.check_like(variance, "variance", mean, "mean", mean.shape)
    short = mean.dtype in (torch.bfloat16, torch.float16)
    m = mean.to(torch.float32 if short else torch.float64)
    v = variance.to(m.dtype)
    # Where 40 deviations do not reach 0, relu of the mean is all that float64 can tell.
    is_fixed = (v == 0) | (m.abs() >= v.detach().sqrt() * 40.0)
    deviation = torch.where(is_fixed, 1.0, v).sqrt()
    t = torch.where(is_fixed, 0.0, m) / deviation
    # By symmetry the mean of relu(y) is relu(mean) and, for either sign, what is beyond 0:
    # deviation (phi(t) - |t| Phi(-|t|)), with Phi as a multiple of phi.
    is_above = m >= 0
    distance = torch.where(is_above, t, -t)
    tail = torch.special.erfcx(distance * math.sqrt(0.5)) * math.sqrt(math.pi / 2)
    density = torch.exp(t.square() * -0.5) * (1 / math.sqrt(2 * math.pi))
    beyond = deviation * density * (1.0 - distance * tail)
    result = torch.where(is_fixed, F.relu(m), torch.where(is_above, m, 0.0) + beyond)
    return result.to(mean.dtype)


def check_activation(activation: Any) -> Callable[[Tensor], Any]:
    """The function that ``activation`` names or is."""
    if isinstance(activation, str):
        checks.check_choice(activation, "activation", ACTIVATIONS)
        return ACTIVATIONS[activation]
    if not callable(activation):
        raise TypeError(
            f"activation must be a callable or one of {', '.join(map(repr, ACTIVATIONS))}, got "
            f"{type(activation).__name__}"
        )
    return activation


def _deviation(variance: Tensor) -> Tensor:
    """The square root, whose gradient is 0 where the variance is."""
    is_random = variance > 0
    return torch.where(is_random, torch.where(is_random, variance, 1.0).sqrt(), 0.0)


def _activate(
    activation: Callable[[Tensor], Any], dtype: torch.dtype, pre_activations: Tensor
) -> Tensor:
    """What a layer of this dtype makes of its pre-activations."""
    output = activation(pre_activations.to(dtype))
    if not isinstance(output, Tensor):
        raise TypeError(f"activation must return a Tensor, got {type(output).__name__}")
    return output


def _chunks(mean: Tensor, samples: int) -> Iterator[tuple[int, int]]:
    """The samples in parts (first, count), cut by shape and device alone."""
    at_once = max(1, _CHUNK_ELEMENTS.get(mean.device.type, 1 << 17) // mean.numel())
    if torch.compiler.is_compiling():
        at_once = max(at_once, -(-samples // _MOST_TRACED_CHUNKS))
    for first in range(0, samples, at_once):
        yield first, min(at_once, samples - first)


def _average(
    mean: Tensor,
    deviation: Tensor,
    activate: Callable[[Tensor], Tensor],
    samples: int,
    state: Tensor,
) -> Tensor:
    """The mean of all samples' activations, in float32 or float64."""
    draw = extension.operators().normal_noise
    size = mean.numel()

    def sum_of(first: int, count: int, mean: Tensor, deviation: Tensor) -> Tensor:
        start = first * size
        beside = start % _BLOCK  # drawn and not used
        noise = draw(state, [beside + count * size], mean.dtype, start - beside)[beside:]
        samples = torch.addcmul(mean, deviation, noise.view(count, *mean.shape))
        return activate(samples).sum(0, dtype=mean.dtype)

    chunks = list(_chunks(mean, samples))
    if len(chunks) == 1:
        return sum_of(0, samples, mean, deviation) / samples
    total = mean.new_zeros((), dtype=torch.float64)
    computes_again = is_grad_enabled() and not _keeps_all()
    for first, count in chunks:
        # Activations may have parameters: what the first part needs says it of the others.
        needs_gradients = any(each.requires_grad for each in (mean, deviation, total))
        if computes_again and needs_gradients:
            part = checkpoint(sum_of, first, count, mean, deviation, use_reentrant=False)
        else:
            part = sum_of(first, count, mean, deviation)
        total = total + part.double()
    return total / samples


def _keeps_all() -> bool:
    """Whether somebody records the calls who has no use for checkpoints."""
    return torch.compiler.is_compiling() or transforms_active()
