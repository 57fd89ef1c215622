"""Does the DropConnect layer meet its goals here? Run: python bench/dropconnect.py

Measures the shape of Table 1 in Wan et al. 2013 (batch 128, 1024 x 1024, fp32), which the naive
PyTorch layer can still run, and one with 4096 x 4096, which it cannot: batch 128 on the CPU (2 G
connections per pass), 512 with `--device cuda` (9 G). `--save` writes all figures as JSON and a
plot as PNG to bench/results/. Exit status 1 if a goal is missed. The goals on a GPU are an H200's.
"""

from __future__ import annotations

import sys
from functools import partial

from fused_dropout._tools.bench.dropconnect import Problem, measure
from fused_dropout._tools.bench.dropconnect_table import print_result, result_title, shape_text
from fused_dropout._tools.bench.report import Goal, Script, Setup, results_beside, run_script

TABLE_1 = Problem(128, 1024, 1024, ps=(0.5, 0.1))
LARGE = Problem(128, 4096, 4096, ps=(0.5,))
LARGE_ON_GPU = Problem(512, 4096, 4096, ps=(0.5, 0.1))

SETUPS = {
    "cpu": Setup(
        file_prefix="dropconnect-",
        measurements=(partial(measure, TABLE_1), partial(measure, LARGE, naive=False)),
        goals=(
            Goal(0, 0.5, "speedup_over_naive", at_least=180),
            Goal(0, 0.5, "times_dense", at_most=3),
            Goal(0, 0.5, "peak_extra_bytes", at_most=40),
            Goal(0, 0.1, "speedup_over_naive", at_least=60),
            Goal(0, 0.1, "times_dense", at_most=10),
            Goal(0, 0.1, "peak_extra_bytes", at_most=40),
            Goal(1, 0.5, "times_dense", at_most=3),
        ),
    ),
    "cuda": Setup(
        file_prefix="",
        measurements=(partial(measure, TABLE_1), partial(measure, LARGE_ON_GPU, naive=False)),
        goals=(
            Goal(0, 0.5, "times_dense", at_most=3),
            Goal(0, 0.5, "speedup_over_naive", at_least=20),
            Goal(0, 0.5, "speedup_over_compiled", at_least=5),
            Goal(1, 0.5, "share_of_ffma_floor", at_least=50),
        ),
    ),
}


SCRIPT = Script(__doc__, SETUPS, results_beside(__file__), print_result, shape_text, result_title)
main = partial(run_script, SCRIPT)

if __name__ == "__main__":
    sys.exit(main())
