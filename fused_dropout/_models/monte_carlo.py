"""Monte Carlo dropout: uncertainty from dropout that stays on (Gal and Ghahramani 2016)."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from fused_dropout._core import checks
from fused_dropout._core.private_torch import flatten, unflatten
from fused_dropout._models import dropout_layers

MaskSharing = Literal["sample", "pass"]
MASK_SHARING = get_args(MaskSharing)

Predict = Callable[..., Tensor]  # of the tensors in the model's arguments


class MCPrediction(NamedTuple):
    """Moments of a model's output over its masks.

    Attributes:
        mean: tensor of the output's shape.
        variance: tensor of the output's shape.
    """

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
    and TransformerEncoderLayer, which in evaluation may take a path without its dropout layers.

    Of all other classes the source of ``forward``, and of the methods that it names, is read: where
    ``self.training`` decides about dropout and nothing else, as in
    ``F.dropout(x, p, self.training)`` or ``dropout_p=self.p if self.training else 0.0``, the module
    is a dropout layer. Names decide what an expression is about; ``drops_in_training = False`` in a
    class says that it is none. A class without source must be named in ``types``.

    Args:
        model: any module; may itself be a dropout layer.
        types: further classes whose instances are put in training mode, without their children.

    Warns:
        UserWarning: the mode of a class decides about dropout and about something else, so that it
            stays in evaluation mode unless it is named in ``types``.

    Returns:
        A context manager that yields ``model``.

    Raises:
        ValueError: nothing in ``model`` drops, so that all predictions would be alike.
        TypeError: an argument of the wrong type.
    """
    checks.check_module(model, "model")
    further = _checked_types(types)
    modes = [(module, module.training) for module in model.modules()]
    dropping = [m for m, _ in modes if isinstance(m, further) or dropout_layers.drops(m)]
    undecided = {type(m): None for m, _ in modes if dropout_layers.drops_among_others(m)}
    left_out = ", ".join(cls.__name__ for cls in undecided if not issubclass(cls, further))
    if left_out:
        warnings.warn(
            f"the mode of {left_out} decides about dropout and about something else, so it stays "
            "in evaluation mode; to have it drop, name the class in types=",
            stacklevel=3,
        )
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
    model: nn.Module | Callable[..., Any],
    x: Any,
    samples: int,
    *,
    masks: MaskSharing = "sample",
    samples_per_pass: int = 1,
    transform: Callable[[Any], Tensor] | None = None,
    correction: int = 1,
    types: type[nn.Module] | Sequence[type[nn.Module]] = (),
    enable_grad: bool = False,
    kwargs: Mapping[str, Any] | None = None,
    modules: nn.Module | Sequence[nn.Module] | None = None,
) -> MCPrediction:
    """Mean and variance of ``model(x, **kwargs)`` over random dropout masks.

    The moments are updated pass by pass (Welford 1962; Chan, Golub and LeVeque 1979), so memory
    does not grow with ``samples`` and a large mean costs no accuracy of a small variance. Random
    numbers come from torch's generators, so ``torch.manual_seed`` repeats the result.

    Source: Gal and Ghahramani, ICML 2016, section 4. Their variance is that of ``correction=0``
    plus the noise of the observations, 1/tau, which is no part of this one.

    Args:
        model: a module, run as inside :func:`mc_dropout`; or a function, see ``modules``.
        x: the model's positional argument, a tensor ``[N, ...]`` or a dict, list or tuple of such
            tensors and of other values; None for a model that takes only ``kwargs``. The model may
            write to its own copies.
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
        types: further classes whose instances drop, as for :func:`mc_dropout`.
        enable_grad: keep the graph, of all passes, for gradients.
        kwargs: the model's keyword arguments; tensors in them are treated as those in ``x``.
        modules: the modules that a function runs, for :func:`mc_dropout`; default: the module that
            it is a method of, if any. A function without modules must drop by itself.

    ``masks="pass"`` and ``samples_per_pass`` above 1 run the model in :func:`torch.func.vmap`,
    which decides for every draw from torch's generators whether items share it. It refuses some
    models, such as those with an LSTM or with control flow that depends on values: they do not work
    with ``"pass"``, and with ``samples_per_pass`` their predictions are made one at a time. Random
    numbers that a layer takes from elsewhere (NumPy, ``random``) are drawn once per pass.

    Returns:
        (mean, variance), each of the output's shape, in float32 for outputs in half precision. Both
        are NaN where a prediction is.

    Warns:
        UserWarning: all predictions are equal, so that something that drops was not recognised, or
            drops nothing; vmap refuses ``samples_per_pass``; and as :func:`mc_dropout`.

    Raises:
        ValueError: an argument out of range; nothing in ``model`` drops.
        TypeError: an argument, or the output, of the wrong type.
        RuntimeError: an output that is not floating point; ``"pass"`` with a tensor that has not
            one row per item, or such an output, or with a model that vmap refuses.
    """
    _check_numbers(samples, masks, samples_per_pass, correction)
    if not callable(model):
        raise TypeError(f"model must be a Module or a function, got {type(model).__name__}")
    switched = _modules_of(model, modules)
    tensors, call_with = _split_arguments(x, kwargs)
    if masks == "pass":
        _check_rows(tensors)

    def predict(*batch: Tensor) -> Tensor:
        output = call_with(model, [tensor.clone() for tensor in batch])
        return _checked_output(output if transform is None else transform(output))

    share = masks == "pass" and len(tensors[0]) > 0  # vmap takes no empty batch
    moments = _Moments()
    with _dropping(switched, types), torch.set_grad_enabled(enable_grad):
        at_once = samples_per_pass
        while moments.count < samples:
            count = min(at_once, samples - moments.count)
            try:
                moments.add(_predictions(predict, tensors, count, share))
            except RuntimeError as error:
                if count == 1:
                    raise
                _warn_of_one_at_a_time(error)
                at_once = 1
    if moments.all_equal():
        warnings.warn(
            f"all {samples} predictions are equal: no layer that was recognised changed them; if "
            "a module drops by its own mode, name its class in types=",
            stacklevel=2,
        )
    return MCPrediction(moments.mean, moments.squares / (samples - correction))


def _modules_of(model: Any, modules: Any) -> nn.Module | None:
    """What mc_dropout is to switch, None for nothing."""
    if isinstance(model, nn.Module):
        if modules is not None:
            raise ValueError("modules goes with a function; this model is a Module")
        return model
    if modules is None:
        function = model
        while isinstance(function, functools.partial):
            function = function.func
        owner = function if isinstance(function, nn.Module) else getattr(function, "__self__", None)
        return owner if isinstance(owner, nn.Module) else None
    given = [modules] if isinstance(modules, nn.Module) else modules
    if not isinstance(given, Sequence) or not all(isinstance(item, nn.Module) for item in given):
        raise TypeError(f"modules must be a Module or a sequence of Modules, got {modules!r}")
    return nn.ModuleList(given)


@contextmanager
def _dropping(model: nn.Module | None, types: Any) -> Iterator[None]:
    if model is None:
        _checked_types(types)
        yield
    else:
        with mc_dropout(model, types=types):
            yield


def _split_arguments(
    x: Any, kwargs: Any
) -> tuple[list[Tensor], Callable[[Callable[..., Any], list[Tensor]], Any]]:
    """The tensors in the arguments, and what calls a model with others in their places."""
    if kwargs is not None and not isinstance(kwargs, Mapping):
        raise TypeError(f"kwargs must be a dict, got {type(kwargs).__name__}")
    if x is not None and not isinstance(x, (Tensor, Mapping, list, tuple)):
        raise TypeError(f"x must be a Tensor or a dict, list or tuple, got {type(x).__name__}")
    positional = () if x is None else (dict(x) if isinstance(x, Mapping) else x,)
    leaves, structure = flatten((positional, dict(kwargs or {})))
    places = [place for place, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
    if not places:
        raise TypeError(f"x or kwargs must hold a Tensor, got x of type {type(x).__name__}")
    for place in places:
        in_x = place < len(flatten(positional)[0])
        checks.check_dense(leaves[place], "x" if in_x else "kwargs")

    def call(model: Callable[..., Any], tensors: list[Tensor]) -> Any:
        filled = list(leaves)
        for place, tensor in zip(places, tensors, strict=True):
            filled[place] = tensor
        arguments, keywords = unflatten(filled, structure)
        return model(*arguments, **keywords)

    return [leaves[place] for place in places], call


class _Moments:
    """Mean, and sum of squared deviations from it, of the values added so far."""

    def __init__(self) -> None:
        self.count = 0
        self.mean = self.squares = torch.zeros(())
        self.first = torch.zeros(())
        self.equal = torch.ones((), dtype=torch.bool)

    def add(self, values: Tensor) -> None:
        """``values[k]`` is the k-th new one."""
        values = values.to(torch.promote_types(values.dtype, torch.float32))
        new = len(values)
        total = self.count + new
        new_mean = values.mean(0)
        new_squares = (values - new_mean).square().sum(0)
        if self.count == 0:
            self.mean, self.squares = new_mean, new_squares
            self.first = values[0].detach()
            self.equal = (values.detach() == self.first).all()
        else:
            delta = new_mean - self.mean
            self.mean = self.mean + delta * (new / total)
            between = delta.square() * (self.count * new / total)
            self.squares = self.squares + new_squares + between
            self.equal = self.equal & (values.detach() == self.first).all()
        self.count = total

    def all_equal(self) -> bool:
        """Whether several values were added, of one element at least, and all were the same.

        False for tensors whose elements cannot be read here.
        """
        if self.count < 2 or self.first.numel() == 0 or self.first.is_meta:
            return False
        try:
            return bool(self.equal)
        except RuntimeError:  # in torch.func.vmap a batch has no single answer
            return False


def _predictions(predict: Predict, tensors: list[Tensor], count: int, share: bool) -> Tensor:
    """``count`` predictions, [count, *output.shape]; ``share``: all items have the same masks."""
    if count == 1 and not share:
        return predict(*tensors)[None]
    if not share:
        return _several(predict, tensors, count)
    # Items outside: the other way round vmap refuses more of the draws that write in place.
    one = functools.partial(_of_one_item, predict, count)
    try:
        shared: Tensor = torch.func.vmap(one, randomness="same", out_dims=1)(*tensors)
        return shared
    except RuntimeError as error:
        raise RuntimeError(
            f"the model failed in torch.func.vmap, which masks='pass' needs: {error}"
        ) from error


def _warn_of_one_at_a_time(error: RuntimeError) -> None:
    warnings.warn(
        "the predictions are made one at a time, as with samples_per_pass=1, because the model "
        f"failed in torch.func.vmap: {error}",
        stacklevel=3,
    )


def _several(predict: Predict, tensors: Sequence[Tensor], count: int) -> Tensor:
    """Predictions in one vmap.

    Expanded tensors make it draw for each prediction even in layers that change their input.
    """
    expanded = (tensor.expand(count, *tensor.shape) for tensor in tensors)
    several: Tensor = torch.func.vmap(predict, randomness="different")(*expanded)
    return several


def _of_one_item(predict: Predict, count: int, *item: Tensor) -> Tensor:
    """[count, ...]: the predictions of a batch that holds one item."""
    batch = [tensor.unsqueeze(0) for tensor in item]
    outputs = predict(*batch)[None] if count == 1 else _several(predict, batch, count)
    if outputs.dim() == 1 or outputs.shape[1] != 1:
        raise RuntimeError(
            "masks='pass' takes a model whose output has a row for each item of x; for one item it "
            f"has shape {list(outputs.shape[1:])}"
        )
    return outputs.squeeze(1)


def _check_numbers(
    samples: int, masks: MaskSharing, samples_per_pass: int, correction: int
) -> None:
    checks.check_choice(masks, "masks", MASK_SHARING)
    checks.check_int(correction, "correction", 0, 2**62)
    if checks.as_int(samples, "samples") <= correction:
        raise ValueError(
            f"samples must be more than correction, which is {correction}, got {samples}"
        )
    checks.check_int(samples_per_pass, "samples_per_pass", 1, 2**62)


def _check_rows(tensors: list[Tensor]) -> None:
    """All tensors have a row for each item."""
    if any(tensor.dim() == 0 for tensor in tensors):
        raise RuntimeError("masks='pass' takes x [N, ...], got a tensor without dimensions")
    rows = [len(tensor) for tensor in tensors]
    if len(set(rows)) > 1:
        raise RuntimeError(f"masks='pass' takes tensors with a row per item, got {rows} rows")


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
