#!/usr/bin/env bash
# Copies the sources to a folder, for a build beside that of the checkout: bench/copy_tree.sh FOLDER
#
# Only files whose content has changed are copied, so that a second build compiles no more than it
# must. What the folder has built stays there; sources that are gone here go there too.
set -euo pipefail
cd "$(dirname "$0")/.."
tree=$1
parts=(setup.py pyproject.toml MANIFEST.in LICENSE Makefile
    README.md CONTRIBUTING.md CHANGELOG.md CITATION.cff
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
