"""What the arguments that many functions share may be, and may not be, as Python code."""

from __future__ import annotations

from random import Random

GOOD_P = (
    "0", "1", "0.0", "-0.0", "1.0", "0.5", "0.5", "0.5", "0.1", "0.1", "0.3", "0.9", "2**-17",
    "2**-17 * (1 + 1e-9)", "2**-17 * (1 - 1e-9)", "1 - 2**-17", "1 - 2**-17 - 1e-9",
    "1 - 2**-17 + 1e-9", "1 - 1.5 / 65536", "1 - 2.5 / 65536", "2**-16", "1e-300", "5e-324",
    "1 - 2**-53", "np.float32(0.1)", "np.float64(0.3)", "np.float16(0.5)", "np.int64(1)",
    "__import__('fractions').Fraction(1, 3)",
)  # fmt: skip
ODD_P = ("True", "False", "np.bool_(True)", "torch.tensor(0.5)", "torch.tensor([0.5])",
         "np.array(0.3)", "__import__('decimal').Decimal('0.5')",
         "torch.nn.Parameter(torch.tensor(0.5))")  # fmt: skip
BAD_NUMBERS = ("float('nan')", "float('inf')", "-float('inf')", "-10**400", "'0.5'", "None",
               "[0.5]", "0.5j", "object()", "torch.ones(2)", "np.ones(2)",
               "torch.ones((), device='meta')", "b'1'", "{}")  # fmt: skip
BAD_P = ("-0.1", "1 + 1e-9", "2", "-5e-324", "10**400", "np.float32(1.5)", *BAD_NUMBERS)

GOOD_SEEDS = ("0", "1", "-1", "2**63", "2**63 - 1", "2**64 - 1", "-2**63", "np.int64(5)",
              "np.uint64(2**64 - 1)", "np.int8(-3)", "12345", "987654321987")  # fmt: skip
ODD_SEEDS = ("True", "np.bool_(True)", "torch.tensor(3)", "np.array(3)")
BAD_SEEDS = ("2**64", "-2**63 - 1", "10**400", "1.0", "np.float64(1)", "'1'", "[1]", "1j",
             "float('nan')", "object()", "torch.ones(2)", "np.array([3])")  # fmt: skip

# (code, seed, offset)
GOOD_STATES = (
    ("torch.tensor([5, 7])", 5, 7),
    ("torch.tensor([-5, -1])", -5, -1),
    ("torch.tensor([2**63 - 1, -(2**63)])", 2**63 - 1, -(2**63)),
    ("fused_dropout.make_rng_state(2**64 - 1, 3)", -1, 3),
    ("torch.tensor([0, 5, 7])[1:]", 5, 7),
    ("torch.zeros(2, dtype=torch.int64)", 0, 0),
)
STRIDED_STATES = (
    ("torch.tensor([5, 0, 7, 0])[::2]", 5, 7),
    ("torch.tensor([[5, 1], [7, 1]])[:, 0]", 5, 7),
    ("torch.tensor([9]).expand(2)", 9, 9),
    ("torch._neg_view(torch.tensor([5, 7]))", -5, -7),
    ("torch.tensor([3, 5, 7]).as_strided((2,), (0,), 1)", 5, 5),
)
BAD_STATES = ("torch.tensor([5., 7.])", "torch.tensor([5, 7], dtype=torch.int32)",
              "torch.tensor([5, 7, 9])", "torch.tensor(5)", "torch.tensor([[5, 7]])",
              "torch.tensor([5])", "torch.empty(0, dtype=torch.int64)", "[5, 7]", "(5, 7)",
              "torch.tensor([5, 7], device='meta')", "np.array([5, 7])", "'x'", "7",
              "torch.tensor([5, 7]).to_sparse()", "torch.tensor([5j, 7])",
              "torch.nested.nested_tensor([torch.tensor([5, 7])])")  # fmt: skip
BAD_GENERATORS = ("5", "'x'", "torch.default_generator.get_state()", "object()")

# In place of a tensor. None is allowed where a tensor is optional.
NO_TENSORS = (
    "'x'",
    "1.0",
    "[1.0]",
    "np.ones(3)",
    "object()",
    "{}",
    "torch.float32",
    "torch.Tensor",
)
BAD_TENSORS = ("torch.ones(3, 4).to_sparse()", "torch.nested.nested_tensor([torch.ones(2)])",
               "torch.eye(4).to_sparse_csr()",
               "torch.nested.nested_tensor([torch.ones(2, 3)], layout=torch.jagged)",
               "torch.ones(3, 4).to_mkldnn()")  # fmt: skip
# Dense tensors of dtypes that the kernels do not take; of the shape of the argument replaced.
BAD_DTYPES = ("int64", "int32", "uint8", "bool", "complex64", "complex128", "uint16",
              "float8_e4m3fn", "float8_e5m2", "int8")  # fmt: skip

BAD = {
    "seed": BAD_SEEDS,
    "rng_state": BAD_STATES,
    "generator": BAD_GENERATORS,
    "convention": ("'x'", "''", "None", "1", "b'paper'", "[]", "{}", "torch.ones(2)"),
    "normalize": ("'x'", "''", "None", "True", "[]", "np.ones(2)"),
    "gamma": ("'x'", "None", "0.5", "[]", "np.ones(2)"),
    "gamma_scale": ("-1e-9", "10**400", "True", *BAD_NUMBERS),
    "mode": ("'x'", "None", "0", "[]", "torch.ones(2)"),
    "activation": ("'x'", "''", "None", "object()", "[]", "torch.ones(2)"),
    "mask": ("'x'", "0", "-1", "True", "1.5", "None", "[]", "torch.tensor(2.5)", "-10**400",
             "np.ones(2)"),
    "mask_storage": ("'x'", "None", "1", "[]", "torch.ones(2)"),
    "temperature": ("0", "-1.0", "10**400", *BAD_NUMBERS),
    "eps": ("-1e-9", "10**400", *BAD_NUMBERS),
    "block_size": ("0", "-1", "'x'", "None", "1.5", "()", "[]", "(1,) * 9", "[None]", "(0,) * 2",
                   "torch.ones(2)", "np.ones(2)", "True", "float('nan')", "object()", "-10**400"),
    "broadcast_dims": ("9", "-9", "(0, 0, 0)", "'x'", "None", "1.5", "[None]", "(9,)", "10**400",
                       "object()", "[[0]]", "(0.0,)", "{}", "torch.ones(1)"),
    "drop_rate": BAD_P,
    "depth": ("-1", "2**31", "1.5", "None", "'x'", "10**400", "[]", "object()"),
    "shape": ("-1", "(-1,)", "(2, -3)", "'x'", "None", "1.5", "(1.5,)", "2**63", "(2**32, 2**32)",
              "10**400", "(2, None)", "object()", "[[2]]"),
    "size": ("-1", "(-1,)", "(2, -3)", "'x'", "None", "1.5", "(1.5,)", "10**400", "(2, None)",
             "object()", "[[2]]", "2**64", "(2**40, 2**40)"),
    "offset": BAD_SEEDS,
    "stream": ("-1", "128", "1.0", "None", "'x'", "10**400", "[]"),
    "digits": ("0", "33", "-1", "1.0", "None", "'x'", "10**400", "[]"),
    "dtype": ("torch.float16", "torch.int64", "None", "'float32'", "float", "[]", "1"),
    "device": ("'cuda:99'", "'x'", "'xpu'", "'cpu:x'", "object()", "[]", "-5"),
}  # fmt: skip


def draw_p(random: Random) -> str:
    """Code of a drop probability in [0, 1]."""
    if random.random() < 0.3:
        return repr(random.random())
    return random.choice(GOOD_P)


def value_of(code: str) -> object:
    """What the code of an argument above stands for."""
    import numpy as np
    import torch

    return eval(code, {"np": np, "torch": torch})
