#!/usr/bin/env bash
# Compiles the extension with CUDA in a copy of the sources: bench/cuda_tree.sh FOLDER
#
# CUDA builds live in such copies, beside the CPU build and untouched by it. Only files whose
# content has changed are copied, so that a second call compiles no more than it must.
#
#   PYTHON                the interpreter, whose torch is built against (default python3)
#   FUSED_DROPOUT_COMMIT  the commit that the build reports (default: git's answer, if there is one)
set -euo pipefail
cd "$(dirname "$0")/.."
tree=$1
python=${PYTHON:-python3}
parts=(setup.py pyproject.toml MANIFEST.in README.md LICENSE Makefile
    csrc fused_dropout tests bench docs examples)

# What a folder has of the sources, sorted.
files_in() {
    (cd "$1" && find "${parts[@]}" -name __pycache__ -prune -o -path bench/results/logs -prune \
        -o -type f ! -name '*.so' -print 2>/dev/null || true) | LC_ALL=C sort
}

mkdir -p "$tree/build"
files_in . > "$tree/build/sources.txt"
files_in "$tree" | LC_ALL=C comm -13 "$tree/build/sources.txt" - | while IFS= read -r gone; do
    rm "$tree/$gone"
done
while IFS= read -r file; do
    if ! cmp -s "$file" "$tree/$file"; then
        mkdir -p "$tree/$(dirname "$file")"
        cp "$file" "$tree/$file"
    fi
done < "$tree/build/sources.txt"

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
