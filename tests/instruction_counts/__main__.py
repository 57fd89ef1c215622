"""Rewrites baselines.json for the compiler that is here, or that CXX names."""

from __future__ import annotations

from instruction_counts.count import BASELINES, compiler_and_release, rewrite

print(f"{BASELINES} for {' '.join(map(str, compiler_and_release()))}:", *rewrite(), sep="\n  ")
