#!/usr/bin/env bash
# Compiles the extension with CUDA in a copy of the sources: bench/cuda_tree.sh FOLDER
#
# CUDA builds live in such copies, beside the CPU build and untouched by it.
#
#   PYTHON                the interpreter, whose torch is built against (default python3)
#   FUSED_DROPOUT_COMMIT  the commit that the build reports (default: git's answer, if there is one)
set -euo pipefail
cd "$(dirname "$0")/.."
tree=$1
python=${PYTHON:-python3}
bench/copy_tree.sh "$tree"

FUSED_DROPOUT_COMMIT=$("$python" -Bc 'import setup; print(setup.commit())')
export FUSED_DROPOUT_COMMIT FUSED_DROPOUT_CUDA=1
cd "$tree"
# Linked again each time: setuptools does not notice that torch is another one. ninja does.
rm -rf build/lib.* fused_dropout/_C*.so
"$python" setup.py build_ext --inplace > build/build.log 2>&1 || {
    tail -n 50 build/build.log
    exit 1
}
grep '^fused_dropout: ' build/build.log
