"""DropConnect (Wan et al. 2013)."""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, is_autocast_enabled, is_grad_enabled
from torch.overrides import handle_torch_function, has_torch_function

from fused_dropout._core import checks, extension
from fused_dropout._core.linear_operands import autocast_operands, check_operands, check_tensors
from fused_dropout._core.private_torch import assume_constant_result
from fused_dropout._core.rates import (
    CONVENTIONS,
    INVERTED,
    PAPER,
    Convention,
    inverse,
    keep_rate,
    philox_calls,
)
from fused_dropout._core.rng import check_single_source, resolve_rng_state
from fused_dropout._ops.dropconnect import (
    DropConnectLinear,
    DropConnectLinearWithBits,
    stored_shape,
)

MaskMode = Literal["row", "example", "batch"]  # or a number of rows
ROW, EXAMPLE, BATCH = MASK_MODES = get_args(MaskMode)
MaskStorage = Literal["auto", "regenerate", "packed"]
AUTO, REGENERATE, PACKED = MASK_STORAGES = get_args(MaskStorage)

# mask_storage="auto": how many bytes of packed bits pay, by the Philox calls that 128 elements
# take. Two calls take as long as bits that have left the last-level cache; more take longer than
# any memory, and the limit keeps a model of many layers from filling it. Read off
# bench/mask_storage.py, with AVX2 and with AVX-512.
PACKED_MAX_BYTES = {0: 0, 1: 0, 2: 16 << 20}
PACKED_MAX_BYTES_OF_MANY_DIGITS = 64 << 20

# On a GPU reading bits takes a few instructions and drawing them 50 to 60 a digit, so they pay
# wherever they lie: in the level-2 cache, or in this part of the memory. One digit is predicted to
# gain a tenth of a step, and only where forward stores what it draws: where no rows share a mask.
PACKED_SHARE_OF_GPU_MEMORY = 1 / 16
PACKED_SHARE_AT_ONE_DIGIT = 1 / 64


def dropconnect_linear(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    p: float = 0.5,
    training: bool = True,
    *,
    mask: MaskMode | int = "example",
    generator: torch.Generator | None = None,
    seed: int | None = None,
    rng_state: Tensor | None = None,
    convention: Convention = "inverted",
    mask_storage: MaskStorage = "auto",
    mask_bias: bool = True,
) -> Tensor:
    r"""A linear layer whose every weight is dropped with probability ``p``, anew for every example.

    Equivalent to ``(M[n] * weight) @ input[n] / q + m[n] * bias / q`` for every example n, with
    Bernoulli masks M [out_features, in_features] and m [out_features] of keep rate q, none of which
    is ever stored as bytes or floats.

    Source: Wan, Zeiler, Zhang, LeCun and Fergus, "Regularization of Neural Networks using
    DropConnect", ICML 2013, section 3 and Algorithm 1, which mask the biases too.

    p below 2^-17 or above 1 - 2^-17 rounds to q = 1 or q = 0: the dense layer, or zeros.

    On the CPU, rows that share a mask with enough others (24 on AVX-512, 8 on AVX2) are multiplied
    by torch's matrix product with masked weights, which are made a tile at a time: buffers of at
    most 24 MiB (36 MiB in float64), or 7 MiB (12 MiB) for each thread where that is more, whatever
    the shapes, and copies of operands whose strides the product cannot take. The last bits of these
    results may depend on the number of threads; all others are the same for any number.

    On a GPU the same holds from 24 rows on (8 in 16 bits), in layers of at least 2^25
    multiply-adds: 2^24 masked weights at a time, as many floats for the weight's gradient, and
    the copies and settings (``torch.backends.cuda.matmul``) of torch's product.

    Args:
        input: ``[..., in_features]``, float32, bfloat16, float16 or float64; any strides.
        weight: ``[out_features, in_features]``, same dtype and device.
        bias: ``[out_features]`` or None.
        p: drop probability in [0, 1]. The keep rate is q = rint((1 - p) 2^16) / 2^16, and the scale
            is exactly 1/q.
        training: if False, the plain linear layer (times q with ``convention="paper"``).
        mask: which rows of the flattened input share a mask: ``"row"`` (none), ``"example"`` (those
            of one item of the first dimension), ``"batch"`` (all), or an int: that many consecutive
            rows (the last group may be smaller).
        generator: draws the random state; default: torch's generator of the input's device.
        seed: an int that makes the call a pure function of its arguments: it uses the masks of seed
            ``seed`` and offset 0.
        rng_state: int64 tensor ``[2]`` (seed, offset), which does the same for any offset; see
            :func:`fused_dropout.make_rng_state`.
        convention: ``"inverted"`` divides by q in training; ``"paper"`` multiplies by q in
            evaluation instead.
        mask_storage: how backward gets the masks back: ``"regenerate"`` draws them again,
            ``"packed"`` keeps 1 bit per connection (in_features rounded up to 128), ``"auto"``
            picks the faster: packed where the bits take at most 64 MiB and q needs at least 3
            binary digits, or at most 16 MiB and 2 digits; on a GPU where the bits take at most a
            sixteenth of its memory, or with 1 digit a 64th and no rows that share a mask.
        mask_bias: whether the bias is masked, and scaled, too; False adds it as it is.

    Returns:
        A tensor ``[..., out_features]``, differentiable twice in input, weight and bias.

    Raises:
        ValueError: p, mask, convention or mask_storage out of range; more than one of generator,
            seed and rng_state.
        RuntimeError: shapes, dtypes or devices that do not fit; no kernels for the device.
        TypeError: an argument of the wrong type.

    Example:
        >>> from fused_dropout import functional as F
        >>> x, weight = torch.ones(2, 4), torch.ones(3, 4)
        >>> F.dropconnect_linear(x, weight, seed=1)  # each example has a mask of its own
        tensor([[2., 8., 4.],
                [6., 4., 6.]])
        >>> F.dropconnect_linear(x, weight, mask="batch", seed=1)  # both have the same
        tensor([[2., 8., 4.],
                [2., 8., 4.]])
    """
    if has_torch_function((input, weight, bias)):
        return handle_torch_function(
            dropconnect_linear,
            (input, weight, bias),
            input,
            weight,
            bias,
            p,
            training,
            mask=mask,
            generator=generator,
            seed=seed,
            rng_state=rng_state,
            convention=convention,
            mask_storage=mask_storage,
            mask_bias=mask_bias,
        )
    if type(p) is not float or not 0.0 <= p <= 1.0:  # checks that pass are not called
        p = checks.check_probability(p)
    if convention is not INVERTED:
        checks.check_choice(convention, "convention", CONVENTIONS)
    if mask_storage is not AUTO:
        checks.check_choice(mask_storage, "mask_storage", MASK_STORAGES)
    if type(mask_bias) is not bool:
        checks.check_bool(mask_bias, "mask_bias")
    if generator is not None or seed is not None or rng_state is not None:
        check_single_source(generator, seed, rng_state)
    if is_autocast_enabled("cpu") or is_autocast_enabled("cuda"):
        check_tensors(input, weight, bias)
        input, weight, bias = autocast_operands(input, weight, bias)
    q = keep_rate(p)
    drops = training and q < 1.0
    scale = inverse(q) if convention == INVERTED else 1.0
    sources = (generator, seed, rng_state)
    if bias is not None and not mask_bias and (drops or (convention == PAPER and not training)):
        check_operands(input, weight, bias)
        products = dropconnect_linear(
            input, weight, None, p, training, mask=mask, generator=generator, seed=seed,
            rng_state=rng_state, convention=convention, mask_storage=mask_storage,
        )  # fmt: skip
        return products + bias
    if drops and isinstance(input, Tensor) and input.is_cpu and input.dim() == 2:
        try:
            settings = (p, _rows_per_mask(input, mask), scale)
            return _multiply(input, weight, bias, settings, mask_storage, *sources)
        except Exception:  # the operator checks matrices itself, but knows no argument's use
            check_operands(input, weight, bias)
            raise
    check_operands(input, weight, bias)
    settings = (p, _rows_per_mask(input, mask), scale)
    if not drops:
        output = F.linear(input, weight, bias)
        return output * q if convention == PAPER and not training else output
    flat = input.reshape(math.prod(input.shape[:-1]), weight.shape[1])
    rows = _multiply(flat, weight, bias, settings, mask_storage, *sources)
    return rows.reshape(*input.shape[:-1], weight.shape[0])


def _multiply(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    settings: tuple[float, int, float],
    mask_storage: MaskStorage,
    generator: torch.Generator | None,
    seed: int | None,
    rng_state: Tensor | None,
) -> Tensor:
    """The layer on a matrix, in training."""
    extension.require_kernels(input)
    state = resolve_rng_state(input, generator, seed, rng_state)
    p, rows_per_mask, _ = settings
    n_masks = -(-input.shape[0] // rows_per_mask)
    needs_masks_again = is_grad_enabled() and (input.requires_grad or weight.requires_grad)
    output: Tensor
    if needs_masks_again and stores_masks(
        mask_storage, p, n_masks, weight, shared=rows_per_mask > 1
    ):
        output, _ = DropConnectLinearWithBits.run((input, weight, bias, state), settings)
    else:
        output = DropConnectLinear.run((input, weight, bias, state, None), settings)
    return output


_MOST_ROWS = 2**62  # more than any tensor has, and an int64


def _rows_per_mask(input: Tensor, mask: MaskMode | int) -> int:
    """How many consecutive rows of the flattened input share a mask."""
    if mask is EXAMPLE and input.dim() == 2:
        return 1
    checks.check_mask_mode(mask, MASK_MODES, "rows")
    if not isinstance(mask, str):
        return min(int(mask), _MOST_ROWS)
    rows = math.prod(input.shape[:-1])
    if mask == ROW or rows == 0:
        return 1
    return rows if mask == BATCH or input.dim() == 1 else rows // input.shape[0]


def masked_bias(bias: Tensor, state: Tensor, p: float, scale: float) -> Tensor:
    """The bias under mask 0: the layer of a bias alone is one without input features."""
    input, weight = bias.new_zeros(1, 0), bias.new_zeros(bias.shape[0], 0)
    rows: Tensor = DropConnectLinear.run((input, weight, bias, state, None), (p, 1, scale))
    return rows.squeeze(0)


def stores_masks(
    mask_storage: MaskStorage, p: float, n_masks: int, weight: Tensor, shared: bool
) -> bool:
    """Whether forward leaves packed masks for backward; ``shared``: several rows have one mask."""
    if mask_storage != AUTO:
        return mask_storage == PACKED
    calls = philox_calls(p)
    if not weight.is_cuda:
        most = PACKED_MAX_BYTES.get(calls, PACKED_MAX_BYTES_OF_MANY_DIGITS)
    elif calls == 0 or (calls == 1 and shared):
        most = 0
    else:
        share = PACKED_SHARE_AT_ONE_DIGIT if calls == 1 else PACKED_SHARE_OF_GPU_MEMORY
        most = packed_max_bytes_of_gpu(weight.device.index, share)
    return most > 0 and 4 * math.prod(stored_shape(n_masks, *weight.shape)) <= most


@assume_constant_result
def packed_max_bytes_of_gpu(index: int | None, share: float) -> int:
    """``share`` of a GPU's memory in bytes, or its cache if that is more; None: the current GPU."""
    properties = torch.cuda.get_device_properties(index)
    return max(properties.L2_cache_size, int(properties.total_memory * share))
