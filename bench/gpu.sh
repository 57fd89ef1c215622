#!/usr/bin/env bash
# All that needs a GPU, for `make gpu-build` and its siblings and for machines without GNU make:
#
#   bench/gpu.sh build     compile the extension and the kernel tests' worker for this GPU (where
#                          there is none, for sm_90), and report on what the compiler made of them
#   bench/gpu.sh test      every test but the PTX interpreter's, each file in a process of its own,
#                          several at a time; the kernel tests run on the GPU alone, unemulated
#   bench/gpu.sh sanitize  the kernels under compute-sanitizer's memcheck and racecheck
#   bench/gpu.sh bench     every benchmark on the GPU
#   bench/gpu.sh all       one after the other
#
# All but the first compile what has changed before they begin. A stage that fails does not keep the
# later ones from running. At the end comes a summary; exit status 1 if a stage failed, 2 if none
# could run.
#
#   PYTHON   the interpreter, with its packages as they are (default python3)
#   RESULTS  the folder for results, and in it logs/ (default bench/results)
#   JOBS     test processes at a time (default: a quarter of the cores)
#   TORCH_CUDA_ARCH_LIST, FUSED_DROPOUT_COMMIT, MAX_JOBS: as for setup.py
set -uo pipefail

refuse() {
    echo "bench/gpu.sh: $1" >&2
    exit 2
}

case "${1-}" in
    build | test | sanitize | bench | all) command=$1 ;;
    *) refuse "expected build, test, sanitize, bench or all, got '${1-}'" ;;
esac

PYTHON=${PYTHON:-python3}
case $PYTHON in /*) ;; */*) PYTHON=$PWD/$PYTHON ;; esac
export PYTHON
root=$(cd "$(dirname "$0")/.." && pwd)
results=${RESULTS:-$root/bench/results}
case $results in /*) ;; *) results=$PWD/$results ;; esac
cores=$(nproc)
at_once=${JOBS:-$((cores >= 8 ? cores / 4 : 1))}
tree=$root/build/gpu
logs=$results/logs
stages=$logs/stages-$command.txt
in_tree=(env -C "$tree" PYTHONPATH="$tree" FUSED_DROPOUT_REQUIRE_CUDA=1
    FUSED_DROPOUT_KERNELS_ON_GPU_ONLY=1)
rounds=4 # of a benchmark; a round holds as many timings as fit in 30 ms

cd "$root" || exit 2
find_gpu='import torch
print("%d.%d" % torch.cuda.get_device_capability() if torch.cuda.is_available() else "none")'
gpu=$("$PYTHON" -c "$find_gpu" 2> /dev/null) || refuse "PYTHON=$PYTHON does not run, or has no torch"
if [ "$gpu" = none ] && [ "$command" != build ]; then
    refuse "torch sees no GPU (nvidia-smi shows what the driver sees); only build needs none"
fi
mkdir -p "$logs" && : > "$stages" || refuse "cannot write to RESULTS=$results"

# ---- stages ---------------------------------------------------------------------------------------

# stage NAME SECONDS COMMAND...: runs the command, for at most so long, with its output in a log.
stage() {
    local name=$1 limit=$2 start=$SECONDS status=0 verdict=passed said
    shift 2
    timeout -k 10 "$limit" "$@" > "$logs/$name.log" 2>&1 < /dev/null || status=$?
    said=$(grep -v '^[[:space:]]*$' "$logs/$name.log" | tail -n 1 | tr -d '\t' | cut -c 1-100)
    if [ $status -eq 124 ] || [ $status -eq 137 ]; then
        verdict=FAILED said="stopped after $limit s"
    elif [ $status -ne 0 ]; then
        verdict=FAILED
    fi
    printf '%s\t%s\t%s\t%s\n' "$name" $((SECONDS - start)) $verdict "$said" | tee -a "$stages" |
        print_stages
    return $status
}

print_stages() {
    while IFS=$'\t' read -r name seconds verdict said; do
        printf '%-44s %5s s  %-7s %s\n' "$name" "$seconds" "$verdict" "$said"
    done
}

# in_turn COUNT NAMES...: a stage for each name by the function `one`, so many at a time.
in_turn() {
    local count=$1 name
    shift
    for name in "$@"; do
        while [ "$(jobs -pr | wc -l)" -ge "$count" ]; do wait -n; done
        one "$name" &
    done
    wait
}

not_run() {
    printf '%s\t%s\t%s\t%s\n' "$1" 0 FAILED "not run: $2" | tee -a "$stages" | print_stages
}

# ---- commands -------------------------------------------------------------------------------------

# What all commands begin with; quick where nothing has changed.
compile() {
    local limit=460
    if [ "$gpu" = none ]; then
        export TORCH_CUDA_ARCH_LIST=${TORCH_CUDA_ARCH_LIST:-9.0}
        echo "torch sees no GPU: compiling for $TORCH_CUDA_ARCH_LIST"
        limit=7200 # such machines may have few cores
    else
        export TORCH_CUDA_ARCH_LIST=${TORCH_CUDA_ARCH_LIST:-$gpu}
    fi
    stage extension $limit bench/cuda_tree.sh "$tree"
    extension=$?
    [ -d "$tree/tests" ] && stage worker 300 env -C "$tree" PYTHONPATH=tests \
        "$PYTHON" -m cuda_on_cpu.build
    worker=$?
}

run_build() {
    stage info 120 env -C "$tree" PYTHONPATH="$tree" "$PYTHON" -m fused_dropout info
    stage kernel_report 300 env -C "$tree" PYTHONPATH="$tree" "$PYTHON" bench/kernel_report.py --no-model
}

run_test() {
    local file others=()
    one() {
        local threads=$((cores > at_once ? cores / at_once : 1))
        stage "$(basename "$1")" 400 "${in_tree[@]}" OMP_NUM_THREADS=$threads \
            "$PYTHON" -m pytest -q "$1"
    }
    stage verify 240 "${in_tree[@]}" "$PYTHON" -m fused_dropout verify --quick --device cuda
    for file in tests/*/test_*.py; do
        case $file in
            tests/ptx/*) ;;
            tests/gpu/test_compute_sanitizer.py | tests/cuda_on_cpu/test_sanitizer_reports.py) ;;
            tests/gpu/test_on_a_gpu.py) ;;
            *) others+=("$file") ;;
        esac
    done
    in_turn "$at_once" "${others[@]}"
    in_turn 1 tests/gpu/test_on_a_gpu.py # alone: it takes much of the GPU's memory
}

run_sanitize() {
    local found
    one() {
        stage "$(tr -c 'a-zA-Z0-9_\n' . <<< "${1#*::}")" 240 "${in_tree[@]}" OMP_NUM_THREADS=2 \
            "$PYTHON" -m pytest -q "$1"
    }
    if [ "$worker" -ne 0 ]; then
        not_run sanitizer "the kernel tests' worker was not built"
        return
    fi
    stage collect 120 "${in_tree[@]}" "$PYTHON" -m pytest -q --collect-only \
        tests/gpu/test_compute_sanitizer.py
    mapfile -t found < <(grep '^tests/.*::' "$logs/collect.log")
    in_turn $((2 * at_once)) "${found[@]}" # each waits for the GPU most of its time
}

run_bench() {
    local file arguments
    one() {
        arguments=(--device cuda --repeats $rounds)
        # Which prints a table and saves nothing else.
        [ "$1" = bench/mask_storage.py ] || arguments+=(--save --results "$results")
        stage "$(basename "$1")" 240 "${in_tree[@]}" "$PYTHON" "$1" "${arguments[@]}"
    }
    for file in bench/*.py; do
        [ "$file" = bench/kernel_report.py ] || in_turn 1 "$file"
    done
}

commands=$command
[ "$command" = all ] && commands="build test sanitize bench"
compile
for each in $commands; do
    if [ "$extension" -eq 0 ]; then
        "run_$each"
    else
        not_run "$each" "the extension was not built"
    fi
done

failed=$(grep -c $'\tFAILED\t' "$stages")
if [ "$failed" -gt 0 ]; then
    grep $'\tFAILED\t' "$stages" | grep -v $'\tnot run: ' | while IFS=$'\t' read -r name _; do
        echo
        echo "-- the end of $name.log"
        tail -n 15 "$logs/$name.log"
    done
fi
echo
echo "bench/gpu.sh $command: $(grep -c . "$stages") stages in $SECONDS s, $failed failed"
echo "results in $results, logs in $logs"
if [ "$failed" -gt 0 ]; then
    echo "failed:"
    grep $'\tFAILED\t' "$stages" | print_stages
    exit 1
fi
