#!/usr/bin/env bash
# Profiles arca with NVIDIA's tools, on the steps that are asked for.
#
#   tools/profile.sh nsys A:B VERB...           a timeline: gpu-profile/report.nsys-rep
#   tools/profile.sh ncu A:B [KERNEL] -- VERB...  counters of kernels: gpu-profile/report.ncu-rep
#
# VERB is arca's, with its arguments: one that knows --profile-steps, which A:B
# becomes (train, bench update). KERNEL is a regular expression of kernel names
# [default: all].
#
#   tools/profile.sh nsys 3:4 train --device cuda --config math.toml --run runs/profiled
#   tools/profile.sh nsys 2:2 bench update --device cuda --shape 1.7b
#   tools/profile.sh ncu 1:1 'attention_.*' -- bench update --device cuda --shape 1.7b --repeats 1
#
# Variables: ARCA, the binary [target/release/arca]; OUT, the folder to write to
# [gpu-profile]; COUNT, most kernels that ncu looks at [200]; RANGE, the NVTX range
# that ncu keeps to, as in "arca@forward/" [all of the steps].
#
# Ranges are arca's own (step > phase > layer > op, domain "arca"); work in CUDA
# graphs is shown kernel by kernel. ncu runs each kernel many times over: look at
# few of them, and not at the times around them.
set -euo pipefail

usage() {
    sed -n '2,/^[^#]/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2
    exit 2
}

fail() {
    echo "profile.sh: $1" >&2
    exit 2
}

need() {
    command -v "$1" >/dev/null || fail "$1 is not here: it comes with the CUDA toolkit ($2), or see docs/profiling.md for the built-in profiler"
}

(($# >= 3)) || usage
tool=$1 steps=$2
shift 2
[[ $steps =~ ^[0-9]+(:[0-9]+)?$ ]] || fail "\"$steps\" are no steps: write A:B, as in 3:4"
kernel=".*"
case $tool in
nsys) need nsys "NVIDIA Nsight Systems" ;;
ncu)
    need ncu "NVIDIA Nsight Compute"
    if [[ $1 == -- ]]; then
        shift
    elif [[ ${2:-} == -- ]]; then
        kernel=$1
        shift 2
    else
        fail "where does arca's verb begin? Write -- in front of it"
    fi
    ;;
*) usage ;;
esac
(($# >= 1)) || usage
arca=${ARCA:-$(dirname "${BASH_SOURCE[0]}")/../target/release/arca}
[[ -x $arca ]] || fail "$arca is not there: cargo build --release, or set ARCA"
out=${OUT:-gpu-profile}
mkdir -p "$out"

command=("$arca" "$@" --profile-steps "$steps")
case $tool in
nsys)
    # Only between cudaProfilerStart and Stop; graphs node by node, so that
    # kernels have their own times and ranges.
    nsys profile --trace=cuda,nvtx,cublas --sample=none --cpuctxsw=none \
        --capture-range=cudaProfilerApi --capture-range-end=stop --cuda-graph-trace=node \
        --force-overwrite=true --output="$out/report" "${command[@]}"
    nsys stats --report nvtx_sum,cuda_gpu_kern_sum --format table "$out/report.nsys-rep" | tee "$out/report.txt"
    ;;
ncu)
    range=()
    [[ -z ${RANGE:-} ]] || range=(--nvtx-include "$RANGE")
    ncu --profile-from-start off --nvtx "${range[@]}" --graph-profiling node --set full --import-source yes \
        --kernel-name "regex:$kernel" --launch-count "${COUNT:-200}" \
        --force-overwrite --export "$out/report" "${command[@]}"
    ncu --import "$out/report.ncu-rep" --page details --print-summary per-kernel | tee "$out/report.txt"
    ;;
esac
