"""Names the classic mistakes that people make with dropout in a model."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any, Literal, get_args

from torch import nn

from fused_dropout._core import checks
from fused_dropout._models.check.calls import executed_calls, traced_calls
from fused_dropout._models.check.finding import Finding
from fused_dropout._models.check.inputs import split_inputs
from fused_dropout._models.check.modes import check_modes
from fused_dropout._models.check.order import check_functions, check_order
from fused_dropout._models.check.rates import check_rates

__all__ = ["Finding", "check"]

Mistake = Literal[
    "dropout-on-in-evaluation",
    "dropout-off-in-training",
    "dropout-ignores-mode",
    "keep-rate-for-p",
    "drops-everything",
    "rate-out-of-range",
    "unread-rate",
    "rnn-dropout-without-effect",
    "dropout-before-batchnorm",
    "dropout-twice",
    "dropout-before-softmax",
    "alpha-dropout-without-selu",
]
MISTAKES = get_args(Mistake)


def check(
    model: nn.Module, example_inputs: Any = None, *, ignore: Sequence[Mistake] = ()
) -> list[Finding]:
    """Names the classic mistakes with dropout in ``model``: what, where, why, and what to do.

    Modes, compared with that of ``model`` itself:

    - ``"dropout-on-in-evaluation"``: a dropout layer of a model in evaluation mode drops. Monte
      Carlo dropout does that on purpose; :func:`fused_dropout.mc_dropout` is its tidy form.
    - ``"dropout-off-in-training"``: a dropout layer of a model in training mode does not drop. A
      part in evaluation mode whose parameters are all frozen is as usual, and none is reported.
    - ``"dropout-ignores-mode"``: a function drops in evaluation mode, as ``F.dropout(x)`` and
      ``scaled_dot_product_attention(..., dropout_p=0.1)`` do, and so does a layer that the model
      does not hold.

    Rates:

    - ``"keep-rate-for-p"``: a drop rate in [0.8, 1), probably meant as a keep rate. Srivastava et
      al. 2014 keep 0.5 to 0.8 of the hidden units and 0.8 of the inputs (appendix A.4), and less
      than 0.4 makes their test error rise (section 7.3).
    - ``"drops-everything"``: a drop rate of 1.
    - ``"rate-out-of-range"``: a rate that was set outside [0, 1].
    - ``"unread-rate"``: a rate that was set under a name which the layer never reads, such as
      ``layer.rate`` of a :class:`torch.nn.Dropout`, whose rate is ``p``.
    - ``"rnn-dropout-without-effect"``: ``dropout`` of an LSTM, GRU or RNN of one layer. It drops
      between layers (documentation of :class:`torch.nn.LSTM`).

    Order, reported where nothing is between the two but layers of rate 0, changes of the shape and,
    for the first three, activations with f(0) = 0:

    - ``"dropout-before-batchnorm"``: dropout of elements or channels before BatchNorm. Li et al.,
      "Understanding the Disharmony between Dropout and Batch Normalization by Variance Shift",
      CVPR 2019.
    - ``"dropout-twice"``: two dropouts of one kind in a row.
    - ``"dropout-before-softmax"``: dropout of logits. Dropout is for inputs and hidden units:
      Srivastava et al. 2014, section 4.
    - ``"alpha-dropout-without-selu"``: alpha dropout after another activation. Klambauer et al.,
      "Self-Normalizing Neural Networks", NeurIPS 2017, section 3.

    The rate and the mode of every module are looked at. Order, and functions called in a forward,
    are known as far as torch.fx can trace the model; of a part that it cannot trace, such as one
    with control flow that depends on values, the parts inside are traced one by one, and a
    Sequential has its order anyway. With ``example_inputs`` the model is run instead, once, in
    evaluation mode, and what that run calls is known, however it is written. Layers of torch.nn
    such as TransformerEncoderLayer are not looked into for order. In both cases the model's code
    runs, its hooks included; modes, attributes and buffers of all modules and torch's random state
    are put back.

    A finding is a reason to look, no proof: name those that are meant so in ``ignore``.

    Args:
        model: any module; may itself be a dropout layer.
        example_inputs: the model's argument: a tensor; several: a tuple or list of its positional
            arguments, or a dict of its keyword arguments. None: torch.fx traces the model.
        ignore: names of mistakes that are not reported.

    Returns:
        The findings, each mistake once in a place; an empty list where there are none.

    Raises:
        ValueError: ``ignore`` has a name that is none of the above; ``example_inputs`` with a model
            of lazy layers that have not been called yet.
        TypeError: an argument of the wrong type.

    Example:
        >>> import fused_dropout
        >>> layers = torch.nn.Linear(8, 8), torch.nn.Dropout(0.9), torch.nn.BatchNorm1d(8)
        >>> for finding in fused_dropout.check(torch.nn.Sequential(*layers)):
        ...     print(finding.where, finding.mistake)
        1 keep-rate-for-p
        1 dropout-before-batchnorm
    """
    checks.check_module(model, "model")
    args, kwargs = split_inputs(example_inputs)
    ignored = _checked_names(ignore)
    if example_inputs is None:
        calls = traced_calls(model, training=True)
        in_evaluation = traced_calls(model, training=False)
    else:
        _check_not_lazy(model)
        calls = in_evaluation = executed_calls(model, args, kwargs)

    found: dict[tuple[str, str], Finding] = {}
    for finding in chain(
        check_modes(model),
        check_functions(in_evaluation),
        check_rates(model),
        check_order(calls, model),
    ):
        found.setdefault((finding.mistake, finding.where), finding)
    return [finding for finding in found.values() if finding.mistake not in ignored]


def _checked_names(ignore: Any) -> Sequence[str]:
    is_sequence = isinstance(ignore, Sequence) and not isinstance(ignore, str)
    if not is_sequence or not all(isinstance(name, str) for name in ignore):
        raise TypeError(f"ignore must be a sequence of names of mistakes, got {ignore!r}")
    for name in ignore:
        checks.check_choice(name, "ignore's elements", MISTAKES)
    names: Sequence[str] = ignore
    return names


def _check_not_lazy(model: nn.Module) -> None:
    tensors = (*model.parameters(), *model.buffers())
    if any(
        isinstance(each, (nn.UninitializedParameter, nn.UninitializedBuffer)) for each in tensors
    ):
        raise ValueError(
            "example_inputs would give the lazy layers of the model their shapes; call the model "
            "once first"
        )
