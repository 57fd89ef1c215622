"""Monte Carlo dropout: uncertainty from dropout that stays on (Gal and Ghahramani 2016)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fused_dropout import _checks

MASK_SHARING = ("sample", "pass")

Model = Callable[[Tensor], Tensor]

# Layers of other packages, by package and class; theirs need not be installed.
_PEERS = {
    ("timm", "DropBlock2d"),
    ("timm", "DropPath"),
    ("torchvision", "DropBlock2d"),
    ("torchvision", "StochasticDepth"),
}


class MCPrediction(NamedTuple):
    """Moments of a model's output over its masks."""

    mean: Tensor
    variance: Tensor


@contextmanager
def mc_dropout(
    model: nn.Module, *, types: type[nn.Module] | Sequence[type[nn.Module]] = ()
) -> Iterator[nn.Module]:
    """Inside the ``with``, the dropout layers of ``model`` drop and all else is in evaluation mode.

    Every module's mode is put back at the end, after an exception too.

    Source: Gal and Ghahramani, "Dropout as a Bayesian Approximation: Representing Model Uncertainty
    in Deep Learning", ICML 2016.

    Dropout layers are: those of this package; of torch.nn; of torchvision (StochasticDepth,
    DropBlock) and timm (DropPath, DropBlock2d); classes with an attribute
    ``drops_in_training = True``; and ``types``. Of torch.nn also layers whose mode decides about
    nothing but their own dropout: LSTM, GRU, RNN and MultiheadAttention with ``dropout`` above 0,
    and TransformerEncoderLayer, which in evaluation may take a path without its dropout layers. A
    module that calls ``F.dropout(x, p, self.training)`` itself must be named in ``types``.

    Args:
        model: any module; may itself be a dropout layer.
        types: further classes whose instances are put in training mode, without their children.

    Returns:
        A context manager that yields ``model``.

    Raises:
        ValueError: nothing in ``model`` drops, so that all predictions would be alike.
        TypeError: an argument of the wrong type.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    further = _checked_types(types)
    modes = [(module, module.training) for module in model.modules()]
    dropping = [module for module, _ in modes if _drops(module, further)]
    if not dropping:
        raise ValueError(
            f"nothing in this {type(model).__name__} is known to drop; name the classes that do in "
            "types="
        )
    try:
        for module, _ in modes:
            module.training = False
        for module in dropping:
            module.training = True
        yield model
    finally:
        for module, mode in modes:
            module.training = mode


def mc_predict(
    model: nn.Module,
    x: Tensor,
    samples: int,
    *,
    masks: str = "sample",
    samples_per_pass: int = 1,
    transform: Callable[[Any], Tensor] | None = None,
    correction: int = 1,
    types: type[nn.Module] | Sequence[type[nn.Module]] = (),
    enable_grad: bool = False,
) -> MCPrediction:
    """Mean and variance of ``model(x)`` over random dropout masks.

    The moments are updated pass by pass (Welford 1962; Chan, Golub and LeVeque 1979), so memory
    does not grow with ``samples`` and a large mean costs no accuracy of a small variance. Random
    numbers come from torch's generators, so ``torch.manual_seed`` repeats the result.

    Source: Gal and Ghahramani, ICML 2016, section 4. Their variance is that of ``correction=0``
    plus the noise of the observations, 1/tau, which is no part of this one.

    Args:
        model: run as inside :func:`mc_dropout`.
        x: ``[N, ...]``, the model's only argument; the model may write to its own copy.
        samples: how many predictions to average, more than ``correction``.
        masks: ``"sample"``: the model runs on the whole batch and each layer draws as it does in
            training, as a rule masks of its own for every item. ``"pass"``: all items of a batch
            get the same masks in each pass, so that a pass is one network drawn at random, applied
            to all of them: item n gets what the model would give it alone, ``x[n:n+1]``, from the
            same random state. Mean and variance of an item have the same expectations either way;
            with ``"pass"`` the deviations of different items go together.
        samples_per_pass: how many predictions to make at once, for that much more memory; their
            masks are independent whatever a layer shares over its batch.
        transform: applied to the model's output, for instance ``lambda y: y.softmax(-1)``.
        correction: the variance is divided by ``samples - correction``, as in :func:`torch.var`.
        types: as for :func:`mc_dropout`.
        enable_grad: keep the graph, of all passes, for gradients.

    ``masks="pass"`` and ``samples_per_pass`` above 1 run the model in :func:`torch.func.vmap`,
    which decides for every draw from torch's generators whether items share it. It refuses some
    models, such as those with an LSTM or with control flow that depends on values; those work with
    the defaults. Random numbers that a layer takes from elsewhere (NumPy, ``random``) are drawn
    once per pass.

    Returns:
        (mean, variance), each of the output's shape, in float32 for outputs in half precision. Both
        are NaN where a prediction is.

    Raises:
        ValueError: an argument out of range; nothing in ``model`` drops.
        TypeError: an argument, or the output, of the wrong type.
        RuntimeError: an output that is not floating point; ``"pass"`` with an ``x`` without
            dimensions or an output that has not one row per item; a model that vmap refuses.
    """
    _check_arguments(x, samples, masks, samples_per_pass, correction)

    def predict(batch: Tensor) -> Tensor:
        output = model(batch.clone())
        return _checked_output(output if transform is None else transform(output))

    share = masks == "pass" and len(x) > 0  # vmap takes no empty batch
    moments = _Moments()
    with mc_dropout(model, types=types), torch.set_grad_enabled(enable_grad):
        for done in range(0, samples, samples_per_pass):
            count = min(samples_per_pass, samples - done)
            moments.add(_predictions(predict, x, count, share))
    return MCPrediction(moments.mean, moments.squares / (samples - correction))


class _Moments:
    """Mean, and sum of squared deviations from it, of the values added so far."""

    def __init__(self) -> None:
        self.count = 0
        self.mean = self.squares = torch.zeros(())

    def add(self, values: Tensor) -> None:
        """``values[k]`` is the k-th new one."""
        values = values.to(torch.promote_types(values.dtype, torch.float32))
        new = len(values)
        total = self.count + new
        new_mean = values.mean(0)
        new_squares = (values - new_mean).square().sum(0)
        if self.count == 0:
            self.mean, self.squares = new_mean, new_squares
        else:
            delta = new_mean - self.mean
            self.mean = self.mean + delta * (new / total)
            between = delta.square() * (self.count * new / total)
            self.squares = self.squares + new_squares + between
        self.count = total


def _predictions(predict: Model, x: Tensor, count: int, share: bool) -> Tensor:
    """``count`` predictions, [count, *output.shape]; ``share``: all items of x have the same masks.

    An expanded x makes vmap draw for each prediction even in layers that change their input.
    """
    if count == 1 and not share:
        return predict(x)[None]
    call = torch.func.vmap(_for_one_item(predict), randomness="same") if share else predict
    try:
        if count == 1:
            return call(x)[None]
        several: Tensor = torch.func.vmap(call, randomness="different")(x.expand(count, *x.shape))
        return several
    except RuntimeError as error:
        raise RuntimeError(
            "the model failed in torch.func.vmap, which masks='pass' and samples_per_pass > 1 "
            f"need: {error}"
        ) from error


def _for_one_item(predict: Model) -> Model:
    def one(item: Tensor) -> Tensor:
        output = predict(item.unsqueeze(0))
        if output.dim() == 0 or len(output) != 1:
            raise RuntimeError(
                "masks='pass' takes a model whose output has a row for each item of x; for one "
                f"item it has shape {list(output.shape)}"
            )
        return output.squeeze(0)

    return one


def _check_arguments(
    x: Tensor, samples: int, masks: str, samples_per_pass: int, correction: int
) -> None:
    _checks.check_dense(x, "x")
    _checks.check_choice(masks, "masks", MASK_SHARING)
    _checks.check_int(correction, "correction", 0, 2**62)
    if _checks.as_int(samples, "samples") <= correction:
        raise ValueError(
            f"samples must be more than correction, which is {correction}, got {samples}"
        )
    _checks.check_int(samples_per_pass, "samples_per_pass", 1, 2**62)
    if masks == "pass" and x.dim() == 0:
        raise RuntimeError("masks='pass' takes x [N, ...], got a tensor without dimensions")


def _checked_output(output: Any) -> Tensor:
    if not isinstance(output, Tensor):
        raise TypeError(
            f"the model's output must be a Tensor, got {type(output).__name__}; transform= can "
            "pick one"
        )
    if not output.is_floating_point():
        raise RuntimeError(f"the model's output must be floating point, got {output.dtype}")
    return output


def _checked_types(types: Any) -> tuple[type[nn.Module], ...]:
    given = (types,) if isinstance(types, type) else types
    if not isinstance(given, Sequence) or not all(isinstance(item, type) for item in given):
        raise TypeError(f"types must be a class or a sequence of classes, got {types!r}")
    return tuple(given)


def _drops(module: nn.Module, types: tuple[type[nn.Module], ...]) -> bool:
    """Whether training mode means dropout for this module, children aside."""
    if isinstance(module, (nn.modules.dropout._DropoutNd, nn.TransformerEncoderLayer, *types)):
        return True
    if isinstance(module, (nn.RNNBase, nn.MultiheadAttention)):
        return module.dropout > 0
    cls = type(module)
    if getattr(cls, "drops_in_training", False):
        return True
    return any((base.__module__.partition(".")[0], base.__name__) in _PEERS for base in cls.__mro__)
