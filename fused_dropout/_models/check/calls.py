"""The calls of modules and functions in a model's forward, and what each gets its input from.

By torch.fx, without inputs, or by running the model on inputs.
"""

from __future__ import annotations

import weakref
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.fx
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from fused_dropout._core.private_torch import flatten
from fused_dropout._models.check.finding import joined
from fused_dropout._models.check.functions import Dropping, function_drops, layer_drops
from fused_dropout._models.check.unchanged import unchanged
from fused_dropout._models.dropout_layers import drops


class Call(NamedTuple):
    """One call of a module or a function.

    Attributes:
        where: qualified name of the module, or of the module whose forward calls the function.
        module: None for a function.
        function: name of the function or method, "" for a module.
        dropping: what it drops, None for nothing.
        source: the call that its first tensor comes from, None where that is not known.
    """

    where: str
    module: nn.Module | None
    function: str
    dropping: Dropping | None
    source: Call | None


def _is_torch_layer(module: nn.Module) -> bool:
    in_torch = type(module).__module__.startswith(("torch.nn.", "torch.ao.nn."))
    return in_torch and not isinstance(module, nn.Sequential)


def _is_plain_sequential(module: nn.Module) -> bool:
    return isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward


def _has_children(module: nn.Module) -> bool:
    return next(module.children(), None) is not None


# ---- torch.fx -----------------------------------------------------------------------------------


def traced_calls(model: nn.Module, *, training: bool) -> list[Call]:
    """The calls that torch.fx finds in ``model`` in that mode.

    Where a module cannot be traced, its children are traced one by one, and the order in a
    Sequential is still known. Layers of torch.nn are single calls, and so are modules without
    children, which are traced on their own besides.
    """
    found: list[Call] = []
    pending = deque([("", model)])
    seen = set()
    with unchanged(model, training=training):
        while pending:
            name, module = pending.popleft()
            if module in seen or (_is_torch_layer(module) and not _has_children(module)):
                continue
            seen.add(module)
            calls = _traced(_Tracer(), module, name)
            if calls is not None:
                leaves = ((call.where, call.module) for call in calls)
                pending += [(where, leaf) for where, leaf in leaves if leaf and not drops(leaf)]
            else:
                if _is_plain_sequential(module):
                    calls = _traced(_SequentialTracer(), module, name)
                pending += [(joined(name, key), child) for key, child in module.named_children()]
            found += calls or []
    return found


class _Tracer(torch.fx.Tracer):
    """Records in ``callers`` the name of the module whose forward makes each call."""

    def __init__(self) -> None:
        super().__init__()
        self.callers: dict[torch.fx.Node, str] = {}
        self._running = [""]

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return _is_torch_layer(m) or not _has_children(m)

    def call_module(
        self,
        m: nn.Module,
        forward: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        try:
            name = self.path_of_module(m)
        except NameError:  # a module that the model does not hold: made in forward, or in a list
            return forward(*args, **kwargs)
        self._running.append(name)
        try:
            return super().call_module(m, forward, args, kwargs)
        finally:
            self._running.pop()

    def create_node(self, *args: Any, **kwargs: Any) -> torch.fx.Node:
        node = super().create_node(*args, **kwargs)
        self.callers[node] = self._running[-1]
        return node


class _SequentialTracer(_Tracer):
    """Enters nothing but Sequentials, which can be traced whatever they hold."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return not _is_plain_sequential(m)


def _traced(tracer: _Tracer, root: nn.Module, prefix: str) -> list[Call] | None:
    """None where torch.fx cannot trace ``root``."""
    try:
        graph = tracer.trace(root)
    except Exception:  # whatever the model's code raises when it is called with stand-ins
        return None
    calls: dict[torch.fx.Node, Call] = {}
    for node in graph.nodes:
        where = joined(prefix, tracer.callers[node])
        source = next((calls[each] for each in node.all_input_nodes if each in calls), None)
        if node.op == "call_module":
            module = root.get_submodule(str(node.target))
            calls[node] = _call_of_module(where, module, source)
        elif node.op in ("call_function", "call_method"):
            calls[node] = _call_of_function(where, node.target, node.args, node.kwargs, source)
    return list(calls.values())


def _call_of_module(where: str, module: nn.Module, source: Call | None) -> Call:
    return Call(where, module, "", layer_drops(module), source)


def _call_of_function(
    where: str, function: Any, args: Sequence[Any], kwargs: Mapping[str, Any], source: Call | None
) -> Call:
    name = function if isinstance(function, str) else getattr(function, "__name__", "")
    return Call(where, None, name, function_drops(function, args, kwargs), source)


# ---- execution ----------------------------------------------------------------------------------


def executed_calls(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Call]:
    """The calls that ``model`` makes in evaluation mode on these arguments."""
    recorder = _Recorder()
    with unchanged(model, training=False), _hooked(model, recorder), recorder:
        model(*args, **kwargs)
    return recorder.calls


class _Recorder(TorchFunctionMode):
    """Records the calls of layers, and of functions outside them, by the tensors they return."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []
        self._running: list[tuple[str, Call | None]] = []  # modules, and what they are called on
        self._layers = 0  # how many of them are layers
        self._made_by: dict[int, tuple[weakref.ref[Tensor], int, Call]] = {}
        self._writes: Counter[int] = Counter()  # by memory

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        inputs = _tensors((args, kwargs))
        where = self._running[-1][0] if self._running else ""
        call = _call_of_function(where, func, args, kwargs, self._source(inputs))
        result = func(*args, **kwargs)
        outputs = _tensors(result)
        if call.dropping is not None:
            result = _told_apart(inputs, result)
        elif _writes_in_place(call.function, inputs, outputs):
            self._writes[_memory(inputs[0])] += 1
        if outputs and not self._layers:
            self._record(call, result)
        return result

    def enter(self, name: str, module: nn.Module, inputs: Any) -> None:
        """Before a module runs."""
        self._running.append((name, self._source(_tensors(inputs))))
        self._layers += _is_layer(module)

    def leave(self, module: nn.Module, inputs: Any, result: Any) -> Any:
        """After it; returns what it is to return."""
        name, source = self._running.pop()
        if not _is_layer(module):
            return result
        if self._layers == 1:
            result = _told_apart(_tensors(inputs), result)
            self._record(_call_of_module(name, module, source), result)
        self._layers -= 1
        return result

    def _record(self, call: Call, result: Any) -> None:
        self.calls.append(call)
        for tensor in _tensors(result):
            writes = self._writes[_memory(tensor)]
            self._made_by[id(tensor)] = (weakref.ref(tensor), writes, call)

    def _source(self, inputs: list[Tensor]) -> Call | None:
        """The call that the first of these tensors comes from, unless it was written to since."""
        if not inputs or id(inputs[0]) not in self._made_by:
            return None
        reference, writes, call = self._made_by[id(inputs[0])]
        is_unchanged = writes == self._writes[_memory(inputs[0])]
        return call if reference() is inputs[0] and is_unchanged else None


@contextmanager
def _hooked(model: nn.Module, recorder: _Recorder) -> Iterator[None]:
    handles = []

    def hook(name: str, module: nn.Module) -> None:
        def before(module: nn.Module, args: Any, kwargs: Any) -> None:
            recorder.enter(name, module, (args, kwargs))

        def after(module: nn.Module, args: Any, kwargs: Any, result: Any) -> Any:
            return recorder.leave(module, (args, kwargs), result)

        handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
        handles.append(module.register_forward_hook(after, with_kwargs=True))

    try:
        for name, module in model.named_modules():
            if not isinstance(module, torch.jit.ScriptModule):
                hook(name, module)
        yield
    finally:
        for handle in handles:
            handle.remove()


def _is_layer(module: nn.Module) -> bool:
    """Whether what happens in the module is of no interest."""
    return _is_torch_layer(module) or (drops(module) and not _has_children(module))


def _tensors(values: Any) -> list[Tensor]:
    return [leaf for leaf in flatten(values)[0] if isinstance(leaf, Tensor)]


def _told_apart(inputs: list[Tensor], result: Any) -> Any:
    """``result``, or a view of it where a layer that does nothing returns the input itself."""
    is_input = isinstance(result, Tensor) and any(result is each for each in inputs)
    return result.view_as(result) if is_input else result


def _writes_in_place(function: str, inputs: list[Tensor], outputs: list[Tensor]) -> bool:
    """Whether a call has written to its first tensor: ``add_``, ``x[0] = y``, ``x += y``, ..."""
    if not inputs:
        return False
    by_name = function == "__setitem__" or (function.endswith("_") and function[-2:] != "__")
    return by_name or any(output is inputs[0] for output in outputs)


def _memory(tensor: Tensor) -> int:
    """What a tensor has in common with its views; tensors without storage count on their own."""
    if tensor.layout is not torch.strided or tensor.is_meta:
        return id(tensor)
    return tensor.untyped_storage().data_ptr() or id(tensor)
