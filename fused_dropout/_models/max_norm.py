"""Max-norm regularisation: weight vectors are kept in a ball (Srivastava et al. 2014)."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from fused_dropout._core import checks

ParameterFilter = Callable[[str, nn.Parameter], bool]


@torch.no_grad()
def max_norm_(
    parameters: nn.Module | Tensor | Iterable[Tensor],
    max_norm: float,
    *,
    dim: int = 0,
    p: float = 2.0,
    eps: float = 1e-7,
    filter: ParameterFilter | None = None,
) -> Tensor:
    """Scales down, in place, every row of the weights whose norm exceeds ``max_norm``.

    Row k is ``weight.select(dim, k)``, all of it: with ``dim=0`` the weights into one unit of a
    Linear layer, or one filter of a convolution. To call after each step of the optimizer.

    Equivalent to ``weight.copy_(torch.renorm(weight, p, dim, max_norm))`` for each weight; half
    precision is computed in float32 and rounded once, which may end a rounding above max_norm.

    Source: Srivastava et al., "Dropout: A Simple Way to Prevent Neural Networks from Overfitting",
    JMLR 2014, section 5.1 (typical values 3 to 4); Hinton et al. 2012, arXiv:1207.0580.

    Args:
        parameters: a module: its parameters that require gradients; or a tensor or several. Tensors
            with fewer than two dimensions, such as biases and the parameters of normalisation
            layers, are left alone. Of a parametrized weight the tensors that it is computed from
            are scaled, not the weight.
        max_norm: the largest norm allowed, at least 0.
        dim: dimension that numbers the rows. For transposed convolutions, whose weights are
            ``[in, out, ...]``, it is 1.
        p: order of the norm, above 0; ``math.inf`` for the largest absolute value.
        eps: a row of norm n > max_norm is multiplied by ``max_norm / (n + eps)``, which leaves it
            below max_norm by the share eps / n, up to rounding; rows within max_norm are not
            touched. The default is torch.renorm's; 0 is allowed.
        filter: called with the qualified name and the parameter of a module; only those for which
            it returns True are scaled.

    Returns:
        The largest norm found, as it was before, over all rows: a tensor without dimensions on the
        device of the first weight (0 if there is none), as ``torch.nn.utils.clip_grad_norm_``
        returns the norm before clipping. Nothing waits for the device.

    Raises:
        RuntimeError: max_norm, p or eps out of range (as :func:`torch.renorm`); a weight that is
            not floating point or complex.
        IndexError: a weight lacks ``dim``.
        TypeError: an argument of the wrong type; ``filter`` without a module.
    """
    max_norm = _check_number(max_norm, "max_norm", "at least 0", lambda value: value >= 0)
    p = _check_number(p, "p", "above 0", lambda value: value > 0)
    eps = _check_number(eps, "eps", "finite and at least 0", lambda value: 0 <= value < math.inf)
    dim = checks.as_int(dim, "dim")
    weights = [w for w in _chosen(parameters, filter) if w.dim() >= 2 and w.numel() > 0]
    for weight in weights:
        _check_weight(weight, dim)
    largest = [_project_rows_(weight, max_norm, dim % weight.dim(), p, eps) for weight in weights]
    if not largest:
        return torch.tensor(0.0)
    device = largest[0].device
    return torch.stack([norm.to(device) for norm in largest]).amax()


def _check_number(value: Any, name: str, allowed: str, fits: Callable[[float], bool]) -> float:
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    number = checks.as_float(value, name)
    if not fits(number):
        raise RuntimeError(f"{name} must be {allowed}, got {checks.shown(value)}")
    return number


def _chosen(
    parameters: nn.Module | Tensor | Iterable[Tensor], filter: ParameterFilter | None
) -> list[Tensor]:
    if isinstance(parameters, nn.Module):
        named = [(n, w) for n, w in parameters.named_parameters() if w.requires_grad]
        return [weight for name, weight in named if filter is None or filter(name, weight)]
    if filter is not None:
        raise TypeError("filter takes the names of a module's parameters: give the module itself")
    weights = [parameters] if isinstance(parameters, Tensor) else list(parameters)
    for weight in weights:
        if not isinstance(weight, Tensor):
            raise TypeError(
                "parameters must be a module, a tensor or an iterable of tensors, got an element "
                f"of type {type(weight).__name__}"
            )
    return weights


def _check_weight(weight: Tensor, dim: int) -> None:
    count = weight.dim()
    if not -count <= dim < count:
        raise IndexError(
            f"dim must be in [{-count}, {count - 1}] for a weight of shape {list(weight.shape)}, "
            f"got {dim}"
        )
    if not (weight.is_floating_point() or weight.is_complex()):
        raise RuntimeError(f"weights must be floating point or complex, got {weight.dtype}")


def _project_rows_(weight: Tensor, max_norm: float, dim: int, p: float, eps: float) -> Tensor:
    """Scales the rows in place; returns the largest norm that they had."""
    others = [d for d in range(weight.dim()) if d != dim]
    wide = torch.promote_types(weight.dtype, torch.float32)
    norms = torch.linalg.vector_norm(weight, p, others, keepdim=True, dtype=wide)
    factors = torch.where(norms > max_norm, max_norm / (norms + eps), 1.0)
    weight.mul_(factors)
    return norms.amax()
