"""One call: its Python code, and what is to come of it."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

import fused_dropout

from .compare import mismatch
from .operands import Operand, numbers

Names = dict[str, Any]
Tensors = dict[str, Tensor]

ALLOWED_ERRORS = (TypeError, ValueError, IndexError, RuntimeError, NotImplementedError)
FORBIDDEN_ERRORS = (RecursionError, UnicodeError)  # of the subclasses of those
# What PyTorch says of its own bugs, and of its own layers in place of an argument.
FORBIDDEN_TEXTS = ("INTERNAL ASSERT", "please report a bug", "vector::", "std::", "basic_string")
SCHEMA_TEXTS = ("fused_dropout::", "Expected a value of type")
# What torch says of a type that has __torch_function__, torch.Tensor for one, in place of a tensor.
NO_DISPATCH = "no implementation found for"

HEADER = """\
import numpy as np
import torch

import fused_dropout
from fused_dropout import functional as F, nn
from tests.hostile.operands import numbers
"""


@dataclass(frozen=True)
class Oracle:
    """What the call must compute.

    ``reference`` takes the operands by name, contiguous and without bits, in float64 or in their
    own dtypes, and gives the outputs in order, of which an operand that was written is the first.
    """

    reference: Callable[[Tensors], tuple[Tensor, ...]]
    elementwise: bool = False
    linear_in: str | None = None  # the operator is linear and its own transpose in this operand
    differentiable: tuple[str, ...] = ()
    sums: int = 0  # the largest number of terms in a sum of the outputs; 0: they sum nothing
    gradient_sums: int = 0  # likewise, of the gradients
    padded: bool = False  # one output of bits; the reference's second says which of them count
    extra_ulps: float = 0.0  # what a steep function makes of its argument's rounding

    def mismatch(
        self, ours: Tensor, truth: Tensor, own: Tensor, sums: int, terms: list[Tensor]
    ) -> str | None:
        """What is wrong with a result whose sums have so many products of the terms, or None."""
        return mismatch(
            ours,
            truth,
            own,
            elementwise=self.elementwise,
            slack=_slack(own.dtype, sums, terms),
            extra_ulps=self.extra_ulps,
        )


@dataclass
class Call:
    """``expression`` is evaluated inside ``contexts`` after the operands and ``setup`` are made."""

    target: str
    expression: str
    operands: list[Operand] = field(default_factory=list)
    setup: list[str] = field(default_factory=list)
    contexts: list[str] = field(default_factory=list)
    expect: str = "value"  # or "error", or "either": a value that is right, or an error
    names: tuple[str, ...] = ()  # an error's message must have one of them, if there are any
    oracle: Oracle | None = None
    writes: str | None = None  # the operand that is written to
    returns_state: bool = False  # the last output is the random state, for the oracle's "state"
    seeding: str = ""  # code that sets generators
    twin: str | None = None  # an expression that must give the same bits after the same setup
    may_alias: bool = True  # the result may share memory with an operand
    format_of: str | None = None  # the operand whose strides the result must have, if dense
    may_name_schema: bool = False  # raw operators may answer in terms of their schemas

    def code(self) -> str:
        """A program that makes this call."""
        lines = [HEADER, *self._setup_lines()]
        if self.contexts:
            lines.append(f"with {', '.join(self.contexts)}:\n    result = {self.expression}")
        else:
            lines.append(f"result = {self.expression}")
        return "\n".join([*lines, "print(result)"])

    def _setup_lines(self) -> list[str]:
        made = [line for operand in self.operands for line in operand.lines()]
        return [*made, *self.setup, *([self.seeding] if self.seeding else [])]

    def __post_init__(self) -> None:
        self.allow_refusals()

    def allow_refusals(self) -> None:
        """Where torch's autograd may refuse an operand, both outcomes are right."""
        if self.expect == "error":
            return
        written = [operand for operand in self.operands if operand.name == self.writes]
        needs_grad = any(operand.grad for operand in self.operands)
        saved = any(operand.inference for operand in self.operands) and needs_grad
        unbound = needs_grad and any(operand.layout.name == "unbound" for operand in written)
        if saved or unbound or any(operand.may_refuse_writes for operand in written):
            self.expect, self.names = "either", ()

    def run(self) -> tuple[str, str]:
        """(outcome, details): an outcome that begins with "!" is a failure."""
        names = self._names()
        before = {key: _snapshot(value) for key, value in names.items() if _is_plain(value)}
        inputs = {operand.name: _materialised(names[operand.name]) for operand in self.operands}
        try:
            result = self._evaluate(self.expression, names)
        except Exception as error:
            for operand in self.operands:
                if operand.inference and operand.name == self.writes:
                    before.pop(operand.name, None)  # torch's own operators write, then raise
            failure = self._judge_error(error) or self._changed(names, before, None)
            return failure or (f"{type(error).__name__}", str(error))
        if self.expect == "error":
            return "!bad argument accepted", f"expected an error about {self.names}"
        written = self.writes if self.writes in before else None
        failure = (
            self._changed(names, before, written)
            or self._aliased(result, names)
            or self._twin_differs(result, names)
            or self._strides_differ(result, names)
            or self._wrong(result, names, inputs)
        )
        return failure or ("value" if self.oracle or self.twin else "value, not compared", "")

    def _names(self) -> Names:
        names: Names = {
            "torch": torch,
            "np": np,
            "fused_dropout": fused_dropout,
            "F": fused_dropout.functional,
            "nn": fused_dropout.nn,
            "numbers": numbers,
        }
        exec("\n".join(self._setup_lines()), names)
        return names

    def _evaluate(self, expression: str, names: Names) -> Any:
        with ExitStack() as stack, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for context in self.contexts:
                stack.enter_context(eval(context, names))
            return eval(expression, names)

    # ---- judgement -------------------------------------------------------------------------------

    def _judge_error(self, error: Exception) -> tuple[str, str] | None:
        kind, text = type(error).__name__, str(error)
        if not isinstance(error, ALLOWED_ERRORS) or isinstance(error, FORBIDDEN_ERRORS):
            return f"!{kind}", text
        if any(forbidden in text for forbidden in FORBIDDEN_TEXTS):
            return "!internal error", text
        if self.expect == "value":
            return f"!good call refused with {kind}", text
        if not self.may_name_schema and any(schema in text for schema in SCHEMA_TEXTS):
            return "!schema in the message", text
        if text.startswith(NO_DISPATCH):
            return None
        if self.names and not any(re.search(rf"\b{name}\b", text) for name in self.names):
            return "!argument not named", f"expected one of {self.names}: {kind}: {text}"
        return None

    def _changed(
        self, names: Names, before: dict[str, Tensor], written: str | None
    ) -> tuple[str, str] | None:
        for key, old in before.items():
            tensor = names[key]
            if written is not None and _same_storage(tensor, names[written]):
                if not torch.equal(_outside(names[written], old), _outside(names[written])):
                    return "!memory around the written view changed", key
            elif not torch.equal(old, _snapshot(tensor)):
                return "!operand changed", key
        return None

    def _aliased(self, result: Any, names: Names) -> tuple[str, str] | None:
        if self.may_alias or not isinstance(result, Tensor) or result.numel() == 0:
            return None
        for operand in self.operands:
            tensor = names[operand.name]
            if _is_plain(tensor) and _is_plain(result) and _same_storage(result, tensor):
                return "!result shares memory with an operand", operand.name
        return None

    def _twin_differs(self, result: Any, names: Names) -> tuple[str, str] | None:
        if self.twin is None:
            return None
        others = self._names()
        twin = self._evaluate(self.twin, others)
        pairs = list(zip(_outputs(result), _outputs(twin), strict=True))
        if self.writes:
            pairs.append((names[self.writes], others[self.writes]))
        for ours, theirs in pairs:
            if not isinstance(ours, Tensor):
                if ours != theirs:
                    return "!differs from its twin", f"{ours!r} is not {theirs!r} of {self.twin}"
                continue
            try:
                torch.testing.assert_close(ours, theirs, rtol=0, atol=0, equal_nan=True)
            except AssertionError as error:
                return "!differs from its twin", f"{self.twin}: {error}"
        return None

    def _strides_differ(self, result: Any, names: Names) -> tuple[str, str] | None:
        if self.format_of is None or not isinstance(result, Tensor) or result.numel() < 2:
            return None
        like = names[self.format_of]
        if not torch.ops.aten.is_non_overlapping_and_dense(like):
            return None
        wanted = torch.empty_like(like).stride()
        pairs = zip(result.stride(), wanted, result.shape, strict=True)
        if all(ours == other or size == 1 for ours, other, size in pairs):
            return None
        return "!memory format", f"strides {result.stride()}, expected {wanted}"

    def _wrong(self, result: Any, names: Names, inputs: Tensors) -> tuple[str, str] | None:
        if self.oracle is None:
            return None
        outputs = _outputs(result)
        if self.returns_state:
            inputs = {**inputs, "state": outputs.pop()}
        if self.writes is not None:
            returned = [out for out in outputs if isinstance(out, Tensor)]
            written = names[self.writes]
            if any(not _same_elements(out, written) for out in returned):
                return "!another tensor than the written one returned", ""
            outputs = [written]
        if any(isinstance(out, Tensor) and out.is_meta for out in outputs):
            return self._wrong_meta(outputs, inputs)
        truth = self.oracle.reference(_converted(inputs, torch.float64))
        own = self.oracle.reference(_converted(inputs, None))
        if self.oracle.padded:
            counts = truth[1]
            outputs, truth, own = [outputs[0] & counts], truth[:1], own[:1]
        if len(truth) != len(outputs):
            return "!number of outputs", f"{len(outputs)}, expected {len(truth)}"
        terms = list(inputs.values())
        for index, (ours, true, same) in enumerate(zip(outputs, truth, own, strict=True)):
            found = self.oracle.mismatch(ours.detach(), true, same, self.oracle.sums, terms)
            if found:
                return "!wrong number", f"output {index}: {found}"
        return self._wrong_gradient(result, names, inputs)

    def _wrong_meta(self, outputs: list[Any], inputs: Tensors) -> tuple[str, str] | None:
        assert self.oracle is not None
        like = {key: numbers(value.shape, value.dtype, 1) for key, value in inputs.items()}
        for ours, other in zip(outputs, self.oracle.reference(like), strict=True):
            if ours.shape != other.shape or ours.dtype != other.dtype:
                return "!wrong meta result", f"{ours.shape} {ours.dtype}, expected {other.shape}"
        return None

    def _wrong_gradient(self, result: Any, names: Names, inputs: Tensors) -> tuple[str, str] | None:
        assert self.oracle is not None
        wanted = [
            operand
            for operand in self.operands
            if operand.grad and operand.name in self.oracle.differentiable
        ]
        without_grad = any("no_grad" in c or "inference" in c for c in self.contexts)
        if not wanted or without_grad or (self.writes and not wanted[0].through_copy):
            return None
        output = names[self.writes] if self.writes else _outputs(result)[0]
        if not output.requires_grad:
            return "!gradient lost", "the output does not require grad"
        direction = numbers(output.shape, output.dtype, 7)
        if output.dim() > 1:
            direction = numbers(output.shape[::-1], output.dtype, 7).permute(
                tuple(reversed(range(output.dim())))
            )
        sources = [names[f"{o.name}_leaf" if o.through_copy else o.name] for o in wanted]
        try:
            ours = torch.autograd.grad(output, sources, direction, allow_unused=True)
        except Exception as error:
            return f"!backward raised {type(error).__name__}", str(error)
        if any(gradient is None for gradient in ours):
            return "!gradient lost", "autograd.grad gives None"
        truth = self._reference_gradients(wanted, inputs, direction, torch.float64)
        own = self._reference_gradients(wanted, inputs, direction, None)
        terms = [*inputs.values(), direction]
        for operand, mine, true, same in zip(wanted, ours, truth, own, strict=True):
            found = self.oracle.mismatch(mine, true, same, self.oracle.gradient_sums, terms)
            if found:
                return "!wrong gradient", f"of {operand.name}: {found}"
        return None

    def _reference_gradients(
        self, wanted: list[Operand], inputs: Tensors, direction: Tensor, dtype: torch.dtype | None
    ) -> list[Tensor]:
        assert self.oracle is not None
        values = _converted(inputs, dtype)
        along = direction.to(dtype) if dtype else direction
        if self.oracle.linear_in is not None and not wanted[0].through_copy:
            values[self.oracle.linear_in] = along.contiguous()
            return [self.oracle.reference(values)[0].detach()]
        sources = []
        for operand in wanted:
            if operand.through_copy:
                leaf = eval(operand.leaf, {"numbers": numbers, "torch": torch})
                if dtype:
                    leaf = leaf.to(torch.complex128 if leaf.is_complex() else dtype)
                leaf.requires_grad_()
                view = operand.view_of("(leaf * 1)")
                values[operand.name] = eval(view, {"leaf": leaf, "torch": torch})
                sources.append(leaf)
            else:
                sources.append(values[operand.name].detach().requires_grad_())
                values[operand.name] = sources[-1]
        output = self.oracle.reference(values)[0]
        if not output.requires_grad:  # nothing of the operand is kept
            return [torch.zeros_like(source) for source in sources]
        found = torch.autograd.grad(output, sources, along, allow_unused=True)
        return [
            torch.zeros_like(source) if gradient is None else gradient
            for source, gradient in zip(sources, found, strict=True)
        ]


# ---- tensors and their memory --------------------------------------------------------------------


def _is_plain(value: Any) -> bool:
    """A dense tensor in memory, whose bytes can be looked at."""
    if not isinstance(value, Tensor) or value.layout != torch.strided or value.is_nested:
        return False
    return value.device.type == "cpu" and not value.is_quantized


def _bytes(tensor: Tensor) -> Tensor:
    return torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage())


def _snapshot(tensor: Tensor) -> Tensor:
    """The bytes of all the memory that the tensor is a view of."""
    return _bytes(tensor).clone()


def _same_storage(a: Tensor, b: Tensor) -> bool:
    return a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr()


def _outside(view: Tensor, memory: Tensor | None = None) -> Tensor:
    """The bytes of ``memory`` that are not the view's; by default those of its own memory."""
    memory = _bytes(view) if memory is None else memory
    size = view.element_size()
    whole = memory.numel() // size
    free = torch.ones(whole, dtype=torch.bool)
    free.as_strided(view.shape, view.stride(), view.storage_offset()).fill_(False)
    return memory[: whole * size].view(whole, size)[free]


def _same_elements(a: Tensor, b: Tensor) -> bool:
    return a.data_ptr() == b.data_ptr() and a.shape == b.shape and a.stride() == b.stride()


def _materialised(tensor: Tensor) -> Tensor:
    """The same values, contiguous and without bits."""
    if tensor.is_meta:
        return tensor.detach()
    plain = tensor.detach().resolve_conj().resolve_neg()
    return plain.clone(memory_format=torch.contiguous_format)


def _outputs(result: Any) -> list[Any]:
    if result is None:
        return []
    return list(result) if isinstance(result, (tuple, list)) else [result]


def _slack(dtype: torch.dtype, sums: int, terms: list[Tensor]) -> float:
    """What rounding may do to a sum of so many products of two of the terms.

    Whatever is not all in float64 is computed in float32.
    """
    if sums == 0 or not dtype.is_floating_point:
        return 0.0
    floating = [term for term in terms if term.is_floating_point()]
    wide = {dtype, *(term.dtype for term in floating)} == {torch.float64}
    eps = torch.finfo(torch.float64 if wide else torch.float32).eps
    return eps * sums * max([1.0, *map(_largest, floating)]) ** 2


def _largest(tensor: Tensor) -> float:
    finite = tensor[tensor.isfinite()].abs() if tensor.numel() else tensor
    return float(finite.max()) if finite.numel() else 0.0


def _converted(inputs: Tensors, dtype: torch.dtype | None) -> Tensors:
    """Fresh tensors that the reference may have; of `dtype` if they are floating."""
    return {
        key: value.to(dtype) if dtype and value.is_floating_point() else value
        for key, value in inputs.items()
    }
