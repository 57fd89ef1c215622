"""What the package computes where torch lacks some private names; run as a process of its own.

    python tests/package/private_torch_results.py FILE [NAME...]

imports fused_dropout while the NAMEs are hidden and writes what it computes to FILE, for
torch.load. The names come back after the import, because torch's own code uses them.
"""

from __future__ import annotations

import contextlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import torch.utils._pytree
from torch import Tensor
from torch.autograd import forward_ad

ROOT = Path(__file__).parent.parent.parent
MODULE = "fused_dropout._core.private_torch"

Tensors = list[Tensor]

# ---- hiding names --------------------------------------------------------------------------------


@contextlib.contextmanager
def without_attribute(owner: Any, name: str) -> Iterator[None]:
    value = getattr(owner, name)
    delattr(owner, name)
    try:
        yield
    finally:
        setattr(owner, name, value)


@contextlib.contextmanager
def without_pytree() -> Iterator[None]:
    """Imports from torch.utils._pytree fail."""
    module = sys.modules.pop("torch.utils._pytree")
    sys.modules["torch.utils._pytree"] = ModuleType("torch.utils._pytree")
    try:
        yield
    finally:
        sys.modules["torch.utils._pytree"] = module


def private_torch() -> Any:
    """The module, ahead of the package that will find it."""
    if MODULE not in sys.modules:
        path = ROOT / "fused_dropout" / "_core" / "private_torch.py"
        spec = importlib.util.spec_from_file_location(MODULE, path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        sys.modules[MODULE] = module
    return sys.modules[MODULE]


class OverloadWithoutPrivateNames:
    """An operator overload that can only be called."""

    def __init__(self, overload: Any) -> None:
        self.overload = overload

    def __call__(self, *args: Any) -> Any:
        return self.overload(*args)


@contextlib.contextmanager
def without_op() -> Iterator[None]:
    """Overloads keep the attribute, which torch cannot do without, but call_of does not see it."""
    module = private_torch()
    call_of = module.call_of
    module.call_of = lambda operator: call_of(OverloadWithoutPrivateNames(operator))
    yield


@contextlib.contextmanager
def without_schema() -> Iterator[None]:
    """The same for the two functions that read a schema."""
    module = private_torch()
    module.tensor_arguments = module._tensor_parameters
    several = module.has_several_results
    module.has_several_results = lambda operator: several(OverloadWithoutPrivateNames(operator))
    yield


@contextlib.contextmanager
def without_version() -> Iterator[None]:
    """Tensors keep the attribute too, but the module looks at something that has none."""
    module = private_torch()
    module.Tensor = object
    module.version_of = module._query_versions()
    module.Tensor = Tensor
    yield


HIDING: dict[str, Callable[[], contextlib.AbstractContextManager[None]]] = {
    "_are_functorch_transforms_active": lambda: without_attribute(
        torch._C, "_are_functorch_transforms_active"
    ),
    "_AutoDispatchBelowAutograd": lambda: without_attribute(torch._C, "_AutoDispatchBelowAutograd"),
    "_len_torch_dispatch_stack": lambda: without_attribute(torch._C, "_len_torch_dispatch_stack"),
    "_current_level": lambda: without_attribute(forward_ad, "_current_level"),
    "_get_creation_meta": lambda: without_attribute(torch._C._autograd, "_get_creation_meta"),
    "get_interpreter_stack": lambda: without_attribute(
        torch._C._functorch, "get_interpreter_stack"
    ),
    "unwrap_if_dead": lambda: without_attribute(torch._C._functorch, "unwrap_if_dead"),
    "_pytree": without_pytree,
    "_op": without_op,  # the last three load the module, so they come after what it must not find
    "_schema": without_schema,
    "_version": without_version,
}


# ---- what is computed ----------------------------------------------------------------------------


def forms() -> dict[str, tuple[Callable[..., Tensor], tuple[Tensor, ...]]]:
    """A function of each description of operators, with a seed, and its operands."""
    from fused_dropout import functional as F

    draw = torch.Generator().manual_seed(0)

    def operand(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draw, dtype=torch.float64)

    x, bias, residual = operand(6, 5), operand(5), operand(6, 5)
    weight, logit = operand(5, 5), operand(1)
    return {
        "dropout": (lambda x: F.dropout(x * 1, 0.5, seed=3), (x,)),
        "drop_path_add": (lambda x, y: F.drop_path_add(x, y, 0.5, True, seed=3), (x, residual)),
        "dropconnect_linear": (
            lambda x, w, b: F.dropconnect_linear(x, w, b, 0.3, seed=3), (x, weight, bias)
        ),
        "bias_act_dropout_add": (
            lambda x, b, r: F.bias_act_dropout_add(x, b, r, 0.3, "gelu", seed=3),
            (x, bias, residual),
        ),
        "gaussian_dropout": (lambda x: F.gaussian_dropout(x, 0.5, seed=3), (x,)),
        "gaussian_noise": (lambda m, v: F.gaussian_noise(m, v * v, seed=3), (x, residual)),
        "concrete_dropout": (lambda x, t: F.concrete_dropout(x, t, seed=3), (x, logit)),
        "drop_block2d": (
            lambda x: F.drop_block2d(x.reshape(1, 1, 6, 5), 0.3, 2, seed=3).reshape(6, 5), (x,)
        ),
    }  # fmt: skip


def eager() -> Tensors:
    """Forward, backward, double backward."""
    found = []
    for call, operands in forms().values():
        leaves = [operand.clone().requires_grad_() for operand in operands]
        output = call(*leaves)
        first = torch.autograd.grad(output.sin().sum(), leaves, create_graph=True)
        second = torch.autograd.grad(sum(grad.cos().sum() for grad in first), leaves)
        with torch.no_grad():
            found += [output, *first, *second, call(*leaves)]
    return found


def outlived_transform() -> Tensors:
    """A tensor from inside torch.func.grad, used outside."""
    from fused_dropout import functional as F

    weight = torch.linspace(-1, 1, 40, dtype=torch.float64, requires_grad=True)
    kept = []

    def function(x: Tensor) -> Tensor:
        kept.append(x * weight)
        return kept[0].sum()

    torch.func.grad(function)(torch.full((40,), 2.0, dtype=torch.float64))
    output = F.dropout(kept[0], 0.5, seed=3)
    return [output.detach() * 1, *torch.autograd.grad(output.sin().sum(), weight)]


def transforms() -> Tensors:
    """grad, jvp and vmap of torch.func."""
    found = []
    for call, operands in forms().values():
        every = tuple(range(len(operands)))
        grads = torch.func.grad(lambda *args, call=call: call(*args).sin().sum(), every)
        output, tangent = torch.func.jvp(call, operands, tuple(map(torch.cos, operands)))
        batches = [torch.stack((operand, operand.sin())) for operand in operands]
        found += [*grads(*operands), output, tangent, torch.func.vmap(call)(*batches)]
    return found


def dual_numbers() -> Tensors:
    found = []
    for call, operands in forms().values():
        with forward_ad.dual_level():
            duals = [forward_ad.make_dual(each, each.cos()) for each in operands]
            output, tangent = forward_ad.unpack_dual(call(*duals))
            assert tangent is not None
            found += [output, tangent]
    return found


def assert_raises(words: str, call: Callable[[], object]) -> None:
    try:
        call()
    except RuntimeError as error:
        assert words in str(error), error
    else:
        raise AssertionError(f"no error that says {words!r}")


def in_place() -> Tensors:
    """With autograd and without, a view too; a leaf is refused; autograd learns of the change."""
    from fused_dropout import functional as F

    found = []
    for call in (F.dropout, F.gaussian_dropout):
        x = torch.linspace(-1, 1, 40, dtype=torch.float64)
        leaf = x.clone().requires_grad_()
        output = call(leaf * 2, 0.5, inplace=True, seed=3)
        found += [output.detach(), *torch.autograd.grad(output.sin().sum(), leaf)]
        base = leaf * 2
        call(base[5:], 0.5, inplace=True, seed=3)
        found += [base.detach(), *torch.autograd.grad(base.sin().sum(), leaf)]
        assert_raises("leaf", lambda call=call, leaf=leaf: call(leaf, 0.5, inplace=True, seed=3))
        plain = x.clone()
        squares = leaf * plain
        assert call(plain, 0.5, inplace=True, seed=3) is plain
        found.append(plain)
        assert_raises("modified by an inplace operation", squares.sum().backward)
    return found


def changed_random_state() -> Tensors:
    """Between forward and backward."""
    from fused_dropout import functional as F
    from fused_dropout import make_rng_state

    for call in (F.dropout, F.gaussian_dropout):
        state = make_rng_state(3, device="cpu")
        output = call(torch.ones(5, requires_grad=True), 0.5, rng_state=state)
        state += 1
        assert_raises("modified by an inplace operation", output.sum().backward)
    return [state]


def raw_operators() -> Tensors:
    from fused_dropout import make_rng_state

    state = make_rng_state(3, device="cpu")
    x = torch.linspace(-1, 1, 40, dtype=torch.float64, requires_grad=True)
    output = torch.ops.fused_dropout.dropout(x, None, state, 0.5, 2.0)
    (first,) = torch.autograd.grad(output.sin().sum(), x, create_graph=True)
    found = [output, first, *torch.autograd.grad(first.sin().sum(), x)]
    found += [torch.ops.fused_dropout.mask(state, 4, 40, 0.5, 0, 16)]
    return [tensor.detach() for tensor in found]


def captured() -> Tensors:
    """torch.compile, torch.export and make_fx, each with gradients."""
    from torch.fx.experimental.proxy_tensor import make_fx

    from fused_dropout import functional as F

    class Model(torch.nn.Module):
        def forward(self, x: Tensor, weight: Tensor) -> Tensor:
            hidden = F.dropout(F.dropconnect_linear(x, weight, None, 0.5, seed=3), 0.5, seed=4)
            return F.drop_block1d(F.dropout(hidden, 0.3, inplace=True, seed=5)[None], 0.5, 2,
                                  gamma="exact", seed=6)[0]  # fmt: skip

    draw = torch.Generator().manual_seed(1)
    operands = [torch.randn(6, 5, generator=draw), torch.randn(7, 5, generator=draw)]
    operands = [operand.requires_grad_() for operand in operands]
    model = Model()
    traced = make_fx(lambda *args: torch.autograd.grad(model(*args).sin().sum(), args))(*operands)
    found = [*traced(*operands)]
    exported = torch.export.export(model, tuple(operands)).module()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    for call in (model, exported, compiled):
        output = call(*operands)
        found += [output.detach(), *torch.autograd.grad(output.sin().sum(), operands)]
    return found


def monte_carlo() -> Tensors:
    import fused_dropout

    model = fused_dropout.nn.Dropout(0.5)
    torch.manual_seed(3)
    found = [*fused_dropout.mc_predict(model, torch.ones(3, 4), samples=4)]
    nested = {"a": torch.ones(3, 4), "b": (2.0, [torch.ones(3, 4)])}
    layers = torch.nn.ModuleList([model])

    def call(a: Tensor, b: Any) -> Tensor:
        factor, (tensor,) = b
        return model(a * factor + tensor)

    found += fused_dropout.mc_predict(
        call, None, samples=4, samples_per_pass=2, kwargs=nested, modules=layers
    )
    return found


def fallbacks() -> list[str]:
    """The names whose fallbacks are in use; each answers differently than with the name."""
    private = private_torch()
    overload = torch.ops.fused_dropout.dropout.default
    levels: list[int] = []
    one = (torch.ones(1),)
    torch.func.jvp(lambda x: (levels.append(private.forward_levels()), x)[1], one, one)
    in_use = {
        "_are_functorch_transforms_active": private.transforms_active(),
        "_AutoDispatchBelowAutograd": private.below_autograd is None,
        "_len_torch_dispatch_stack": private.modes_active(),
        "_current_level": private.in_dual_level(),
        "_get_creation_meta": not private.is_plain_view(torch.ones(2)[:1]),
        "get_interpreter_stack": levels == [0],
        "unwrap_if_dead": private.unwrap_if_dead is None,
        "_pytree": private.flatten.__module__ == MODULE,
        "_op": private.call_of(overload) is not overload._op,
        "_schema": private.tensor_arguments is private._tensor_parameters,
        "_version": private.version_of is None,
    }
    return [name for name in HIDING if in_use[name]]


PARTS = (
    eager,
    transforms,
    outlived_transform,
    dual_numbers,
    in_place,
    changed_random_state,
    raw_operators,
    captured,
    monte_carlo,
)


def main(file: str, *names: str) -> None:
    sys.path.insert(0, str(ROOT))
    with contextlib.ExitStack() as hidden:
        for name, hide in HIDING.items():
            if name in names:
                hidden.enter_context(hide())
        import fused_dropout
    assert Path(fused_dropout.__file__).parent.parent == ROOT
    found: dict[str, Any] = {part.__name__: part() for part in PARTS}
    torch.save({**found, "fallbacks": fallbacks()}, file)


if __name__ == "__main__":
    main(*sys.argv[1:])
