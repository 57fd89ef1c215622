"""Moments of a model's output over its dropout masks, and the entropies of class probabilities."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from fused_dropout._core import checks
from fused_dropout._models.monte_carlo.batches import is_loader, loaded
from fused_dropout._models.monte_carlo.passes import (
    Predict,
    check_rows,
    checked_output,
    predictions,
    split_arguments,
)
from fused_dropout._models.monte_carlo.statistics import (
    ClassEntropies,
    MCPrediction,
    Moments,
    check_batch,
    concatenated,
)
from fused_dropout._models.monte_carlo.switching import dropping, modules_of

MaskSharing = Literal["sample", "pass"]
MASK_SHARING = get_args(MaskSharing)


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
    inputs: Callable[[Any], Any] | None = None,
    class_dim: int | None = None,
    keep_samples: bool = False,
) -> MCPrediction:
    """Mean and variance of ``model(x, **kwargs)`` over random dropout masks.

    On request also the entropy of the mean prediction, the mutual information of class and masks,
    and the predictions themselves.

    The moments are updated pass by pass (Welford 1962; Chan, Golub and LeVeque 1979), so memory
    does not grow with ``samples`` and a large mean costs no accuracy of a small variance. Random
    numbers come from torch's generators, so ``torch.manual_seed`` repeats the result.

    Source: Gal and Ghahramani, ICML 2016, section 4. Their variance is that of ``correction=0``
    plus the noise of the observations, 1/tau, which is no part of this one. Mutual information:
    Houlsby, Huszar, Ghahramani and Lengyel, "Bayesian Active Learning for Classification and
    Preference Learning", 2011; Gal, Islam and Ghahramani, "Deep Bayesian Active Learning with Image
    Data", ICML 2017, section 3.

    Args:
        model: a module, run as inside :func:`mc_dropout`; or a function, see ``modules``.
        x: the model's positional argument, a tensor ``[N, ...]`` or a dict, list or tuple of such
            tensors and of other values; None for a model that takes only ``kwargs``. The model may
            write to its own copies. Or a DataLoader or another iterable of such batches: the result
            is that of all items, batch after batch, each moved to the device of the model's first
            parameter.
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
        inputs: picks ``x`` out of a loader's batch; default: of a list or tuple its first element,
            as data sets of (inputs, labels) give, else the batch. For a model that takes batches
            as keywords: ``mc_predict(lambda x: model(**x), loader, ..., modules=model)``.
        class_dim: the dimension of the output, after ``transform``, that holds class probabilities.
            Asks for ``entropy`` and ``mutual_information``, which are summed in float64, pass by
            pass too.
        keep_samples: asks for ``samples``, all predictions, for that much memory.

    ``masks="pass"`` and ``samples_per_pass`` above 1 run the model in :func:`torch.func.vmap`,
    which decides for every draw from torch's generators whether items share it. It refuses some
    models, such as those with an LSTM or with control flow that depends on values: they do not work
    with ``"pass"``, and with ``samples_per_pass`` their predictions are made one at a time. Random
    numbers that a layer takes from elsewhere (NumPy, ``random``) are drawn once per pass.

    Returns:
        (mean, variance), each of the output's shape, in float32 for outputs in half precision, with
        further attributes where they were asked for: see :class:`MCPrediction`. All are NaN where a
        prediction is.

    Warns:
        UserWarning: all predictions are equal, so that something that drops was not recognised, or
            drops nothing; vmap refuses ``samples_per_pass``; and as :func:`mc_dropout`.

    Raises:
        ValueError: an argument out of range; nothing in ``model`` drops; ``class_dim`` for an
            output that is no probabilities; a loader without batches.
        IndexError: the output has no dimension ``class_dim``.
        TypeError: an argument, or the output, of the wrong type.
        RuntimeError: an output that is not floating point; ``"pass"`` with a tensor that has not
            one row per item, or such an output, or with a model that vmap refuses; a loader with
            outputs that differ in more than their rows.

    Example:
        >>> import fused_dropout
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Dropout(0.5))
        >>> found = fused_dropout.mc_predict(
        ...     model, torch.ones(2, 4), 10, transform=lambda y: y.softmax(-1), class_dim=-1
        ... )
        >>> mean, variance = found
        >>> mean.shape, found.entropy.shape, found.mutual_information.shape
        (torch.Size([2, 3]), torch.Size([2]), torch.Size([2]))
    """
    _check_numbers(samples, masks, samples_per_pass, correction)
    if not callable(model):
        raise TypeError(f"model must be a Module or a function, got {type(model).__name__}")
    if class_dim is not None:
        class_dim = checks.as_int(class_dim, "class_dim")
    checks.check_bool(keep_samples, "keep_samples")
    from_loader = is_loader(x)
    if inputs is not None and not (from_loader and callable(inputs)):
        raise ValueError("inputs is a function for the batches of a loader; x is a batch itself")
    if from_loader and class_dim == 0:
        raise ValueError("class_dim must not be 0 with a loader: dimension 0 counts the items")
    switched = modules_of(model, modules)
    run = _Run(
        model, samples, masks == "pass", samples_per_pass, transform, correction, kwargs,
        class_dim, keep_samples,
    )  # fmt: skip
    if not from_loader:
        run.prepare(x)  # mistakes in the arguments come before a warning about the model
    with dropping(switched, types), torch.set_grad_enabled(enable_grad):
        found: list[MCPrediction] = []
        for batch in loaded(x, inputs, switched) if from_loader else (x,):
            found.append(run.of_batch(batch))
            if from_loader:
                check_batch(found[-1], found[0])
    if not found:
        raise ValueError(f"x must give a batch at least, got an empty {type(x).__name__}")
    if run.all_equal:
        warnings.warn(
            f"all {samples} predictions are equal: no layer that was recognised changed them; if "
            "a module drops by its own mode, name its class in types=",
            stacklevel=2,
        )
    return concatenated(found) if from_loader else found[0]


@dataclass
class _Run:
    """One call of mc_predict, for one batch or several."""

    model: Callable[..., Any]
    samples: int
    share: bool  # masks, among the items of a batch
    at_once: int
    transform: Callable[[Any], Tensor] | None
    correction: int
    kwargs: Mapping[str, Any] | None
    class_dim: int | None
    keep_samples: bool
    all_equal: bool = True  # the predictions of every batch so far

    def prepare(self, x: Any) -> tuple[list[Tensor], Predict]:
        """The tensors in the arguments, and what makes a prediction of others in their places."""
        tensors, call_with = split_arguments(x, self.kwargs)
        if self.share:
            check_rows(tensors)

        def predict(*batch: Tensor) -> Tensor:
            output = call_with(self.model, [tensor.clone() for tensor in batch])
            return checked_output(output if self.transform is None else self.transform(output))

        return tensors, predict

    def of_batch(self, x: Any) -> MCPrediction:
        """The result for one batch."""
        tensors, predict = self.prepare(x)
        share = self.share and len(tensors[0]) > 0  # vmap takes no empty batch
        moments, kept = Moments(), []
        entropies = None if self.class_dim is None else ClassEntropies(self.class_dim)
        while moments.count < self.samples:
            count = min(self.at_once, self.samples - moments.count)
            try:
                values = predictions(predict, tensors, count, share)
            except RuntimeError as error:
                if count == 1:
                    raise
                _warn_of_one_at_a_time(error)
                self.at_once = 1
                continue
            moments.add(values)
            if entropies is not None:
                entropies.add(values)
            if self.keep_samples:
                kept.append(values)
        self.all_equal = self.all_equal and moments.all_equal()
        further = {} if entropies is None else entropies.results()
        if self.keep_samples:
            further["samples"] = torch.cat(kept)
        variance = moments.squares / (self.samples - self.correction)
        return MCPrediction(moments.mean, variance, **further)


def _warn_of_one_at_a_time(error: RuntimeError) -> None:
    warnings.warn(
        "the predictions are made one at a time, as with samples_per_pass=1, because the model "
        f"failed in torch.func.vmap: {error}",
        stacklevel=4,
    )


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
