"""Zoneout: a recurrent state of which some elements stay as they were."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function

from fused_dropout._core import checks, extension
from fused_dropout._core.rates import keep_rate
from fused_dropout._core.rng import check_single_source, resolve_rng_state
from fused_dropout._ops.zoneout import Zoneout


def zoneout(
    input: Tensor,
    previous: Tensor,
    p: float = 0.5,
    training: bool = True,
    *,
    generator: torch.Generator | None = None,
    seed: int | None = None,
    rng_state: Tensor | None = None,
) -> Tensor:
    """Leaves each element of a recurrent state as it was with probability ``p``.

    In training an element of the result is that of ``previous`` with probability p, else that of
    ``input``, bit for bit: nothing is computed with it, and an infinity or NaN in the other tensor
    does not reach it. Nothing is scaled. In evaluation the result is the expectation, ``q * input +
    (1 - q) * previous``. Equivalent to ``torch.where(mask, input, previous)`` with a mask that
    backward draws again from 16 bytes of random state; one pass of backward gives both gradients.

    Element k of the result, counted in row-major order whatever the strides, is new where element k
    of ``fused_dropout.mask(numel, p, seed=seed, offset=offset)`` is True.

    Source: Krueger et al., "Zoneout: Regularizing RNNs by Randomly Preserving Hidden Activations",
    ICLR 2017, section 3, where p is the probability of a cell's or hidden unit's previous value, as
    ``zoneout`` is in Haste and ``zoneout_prob`` elsewhere.

    Args:
        input: the new state, as the cell gives it; any shape, strides and memory format; float32,
            bfloat16, float16 or float64.
        previous: the state before, of the shape and device of ``input``. Where the dtypes differ,
            the lesser is converted first, as in :func:`torch.where`; that is a pass of its own.
        p: probability in [0, 1] of the previous value. That of the new one is q = rint((1 - p)
            2^16) / 2^16.
        training: if False, the result is the expectation.
        generator: draws the random state; default: torch's generator of the input's device.
        seed: an int that makes the call a pure function of its arguments: it uses the mask of seed
            ``seed`` and offset 0.
        rng_state: int64 tensor ``[2]`` (seed, offset), which does the same for any offset; see
            :func:`fused_dropout.make_rng_state`.

    Returns:
        A tensor of the shape and memory format of ``input``, differentiable any number of times.

    Raises:
        ValueError: p out of range; more than one of generator, seed and rng_state.
        RuntimeError: ``previous`` has another shape or device than ``input``; an integer dtype
            (NotImplementedError for complex numbers and 8-bit floats, as in torch); no kernels for
            the device.
        TypeError: an argument of the wrong type.

    Example:
        >>> from fused_dropout import functional as F
        >>> new, old = torch.ones(8), torch.zeros(8)
        >>> F.zoneout(new, old, 0.5, seed=1)
        tensor([0., 1., 0., 0., 0., 1., 1., 1.])
        >>> F.zoneout(new, old, 0.25, training=False)
        tensor([0.7500, 0.7500, 0.7500, 0.7500, 0.7500, 0.7500, 0.7500, 0.7500])
    """
    if has_torch_function((input, previous)):
        return handle_torch_function(
            zoneout,
            (input, previous),
            input,
            previous,
            p,
            training,
            generator=generator,
            seed=seed,
            rng_state=rng_state,
        )
    p = checks.check_probability(p)
    check_single_source(generator, seed, rng_state)
    for tensor, name in ((input, "input"), (previous, "previous")):
        checks.check_dense(tensor, name)
        checks.check_float_tensor(tensor, name)
    checks.check_shape(previous, "previous", input.shape)
    checks.check_same_device(previous, "previous", input, "input")
    if input.dtype != previous.dtype:
        dtype = torch.promote_types(input.dtype, previous.dtype)
        input, previous = input.to(dtype), previous.to(dtype)
    q = keep_rate(p)
    if q == 1.0:
        return input
    if q == 0.0:
        return previous
    if not training or input.numel() == 0:
        return torch.add(input * q, previous, alpha=1.0 - q)
    extension.require_kernels(input)
    state = resolve_rng_state(input, generator, seed, rng_state)
    output: Tensor = Zoneout.run((input, previous, state), (p,))
    return output
