"""Every use of torch's private API in this package, each with a public fallback.

The rest of the package uses the names without an underscore and does not know what is behind them.
Where a release of torch lacks a private name, its fallback takes the general path: right, but with
more work in every call; one that gives up more says what. ``tests/package/test_private_torch.py``
runs them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from operator import attrgetter
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

Function = TypeVar("Function", bound=Callable[..., Any])

# ---- how operators are called --------------------------------------------------------------------


def _query_transforms() -> Callable[[], bool]:
    """Fallback: always assume a transform; the Function for transforms is right without one too."""
    query: Callable[[], bool] | None = getattr(torch._C, "_are_functorch_transforms_active", None)
    return query or (lambda: True)


def _query_dual_level() -> Callable[[], bool]:
    """Fallback: always assume a level; whether a tensor has a tangent is asked of the tensor."""
    if not hasattr(forward_ad, "_current_level"):
        return lambda: True
    return lambda: forward_ad._current_level >= 0


def _query_modes() -> Callable[[], bool]:
    """Fallback: always assume a mode; a random state that is drawn on the device suits all."""
    count: Callable[[], int] | None = getattr(torch._C, "_len_torch_dispatch_stack", None)
    return (lambda: True) if count is None else (lambda: count() > 0)


def _count_forward_levels() -> Callable[[], int]:
    """Fallback: none is seen, and forward mode over forward mode is not refused."""
    functorch = getattr(torch._C, "_functorch", None)
    stack = getattr(functorch, "get_interpreter_stack", None)
    kinds = getattr(functorch, "TransformType", None)
    if functorch is None or stack is None or kinds is None:
        return lambda: 0
    return lambda: sum(level.key() == kinds.Jvp for level in stack() or ())


def call_of(operator: Any) -> Callable[..., Any]:
    """What an operator overload calls. Fallback: the overload itself."""
    return getattr(operator, "_op", operator)


def tensor_arguments(operator: Any) -> int:
    """How many of an overload's arguments are tensors. Fallback: what torch.fx says of them."""
    schema = getattr(operator, "_schema", None)
    if schema is None:
        return _tensor_parameters(operator)
    return sum("Tensor" in str(argument.type) for argument in schema.arguments)


def _tensor_parameters(operator: Any) -> int:
    from torch.fx.operator_schemas import get_signature_for_torch_op

    signatures: Any = get_signature_for_torch_op(operator)
    return sum("Tensor" in str(each.annotation) for each in signatures[0].parameters.values())


def has_several_results(operator: Any) -> bool:
    """Whether an overload returns more than one tensor. Fallback: as if every one did."""
    schema = getattr(operator, "_schema", None)
    return schema is None or len(schema.returns) > 1


def _guard_below_autograd() -> Callable[[], AbstractContextManager[Any]] | None:
    """Fallback: none. Then torch.library.register_autograd stands in for our own autograd kernels.

    It loses the tangents of raw operators outside torch.func; functions and modules are right.
    """
    return getattr(torch._C, "_AutoDispatchBelowAutograd", None)


def _query_unwrapping() -> Callable[[Tensor], Tensor] | None:
    """Fallback: none. Then Functions are applied by torch's Python, in 2 us more."""
    return getattr(getattr(torch._C, "_functorch", None), "unwrap_if_dead", None)


def _query_view_kinds() -> Callable[[Tensor], bool]:
    """Fallback: no view is known to be plain; what may not be plain is written by torch's copy_."""
    kinds: Any = getattr(torch._C, "_autograd", None)
    kind_of = getattr(kinds, "_get_creation_meta", None)
    if kind_of is None:
        return lambda view: False
    plain = kinds.CreationMeta.DEFAULT
    return lambda view: kind_of(view) == plain


def _query_versions() -> Callable[[Tensor], int] | None:
    """Fallback: none. Then tensors are saved for backward, and autograd looks at their versions."""
    return attrgetter("_version") if hasattr(Tensor, "_version") else None


#: Whether a torch.func transform (grad, vmap, jvp, ...) is active.
transforms_active = _query_transforms()

#: Whether torch.autograd.forward_ad.dual_level is active.
in_dual_level = _query_dual_level()

#: Whether a TorchDispatchMode records or replaces operators (make_fx, FakeTensorMode, ...).
modes_active = _query_modes()

#: Context in which operators run without their autograd kernels; None where torch has none.
below_autograd = _guard_below_autograd()

#: A number that changes whenever a tensor is written to; None where torch has none.
version_of = _query_versions()

#: How many of torch.func's forward-mode transforms are nested here.
forward_levels = _count_forward_levels()

#: Whether autograd made a view as one view of one tensor, in grad mode: it can be written to.
is_plain_view = _query_view_kinds()

#: Takes a tensor that has outlived a torch.func transform out of it; None where torch has none.
unwrap_if_dead = _query_unwrapping()


def apply_of(function: type[torch.autograd.Function]) -> Callable[..., Any]:
    """``function.apply`` for two tensors and a constant, where no transform is active.

    What torch does there in Python takes longer than much of a small call, and is for transforms,
    but for tensors that have outlived one.
    """
    if unwrap_if_dead is None:
        return function.apply
    above: Any = super(torch.autograd.Function, function)
    unwrap, apply = unwrap_if_dead, above.apply
    return lambda tensor, other, constant: apply(
        unwrap(tensor), other if other is None else unwrap(other), constant
    )


# ---- torch.compile -------------------------------------------------------------------------------


def assume_constant_result(function: Function) -> Function:
    """As torch.compiler.assume_constant_result, which imports all of torch._dynamo to do so.

    No fallback is needed: where torch ignores the mark, torch.compile traces the function instead.
    """
    vars(function)["_dynamo_marked_constant"] = True
    return function


def without_donated_buffers() -> AbstractContextManager[Any]:
    """Has torch.compile keep the buffers that several backward passes over one graph need.

    Fallback: nothing; the second backward pass over a compiled graph raises.
    """
    try:
        from torch._functorch import config

        return config.patch(donated_buffer=False)
    except (ImportError, AttributeError):
        return nullcontext()


# ---- modules and their arguments -----------------------------------------------------------------

if TYPE_CHECKING:
    from torch.nn.modules.dropout import _DropoutNd as DropoutBase
else:
    #: What torch.nn's dropout layers derive from. Fallback: one of them.
    DropoutBase = getattr(nn.modules.dropout, "_DropoutNd", nn.Dropout)

#: The attributes in which recurrent layers list their weights for the kernels.
FLAT_WEIGHTS = ("_flat_weights", "_flat_weight_refs")


def flat_weights_with(rnn: nn.RNNBase, weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """FLAT_WEIGHTS of ``rnn``, by name, with other tensors for some of its parameters.

    Brings those of ``rnn`` up to date first, as each forward does. The weights in the list need not
    be the parameters where there is no reference to them: then forward leaves the list as it is.

    Fallback: none are given, and forward is left to find the weights by their names.
    """
    names, update = (
        getattr(rnn, "_flat_weights_names", ()),
        getattr(rnn, "_update_flat_weights", None),
    )
    if update is None or not all(hasattr(rnn, name) for name in FLAT_WEIGHTS):
        return {}
    update()
    flat, references = list(rnn._flat_weights), list(rnn._flat_weight_refs)
    for place, name in enumerate(names):
        if name in weights:
            flat[place], references[place] = weights[name], None
    return {"_flat_weights": flat, "_flat_weight_refs": references}


try:
    from torch.utils._pytree import tree_flatten as flatten
    from torch.utils._pytree import tree_unflatten as unflatten
except ImportError:  # then tuples, lists and dicts alone, and not what others have registered
    from torch.fx.node import map_aggregate

    def flatten(tree: Any) -> tuple[list[Any], Any]:  # type: ignore[misc]
        """The leaves of nested containers, and what ``unflatten`` needs to put others there."""
        leaves: list[Any] = []
        map_aggregate(tree, leaves.append)
        return leaves, tree

    def unflatten(leaves: Sequence[Any], structure: Any) -> Any:  # type: ignore[misc]
        """The containers that ``flatten`` was given, with other leaves."""
        following = iter(leaves)
        return map_aggregate(structure, lambda _: next(following))
