#!/usr/bin/env bash
# Runs everything on a machine with a GPU but without Rust or network.
#
#   tools/gpu_check.sh build        here: release test and arca binaries, stripped, into gpu-check/
#   tools/gpu_check.sh run [FAST]   there: tests, sanitizers, kernel table, one summary at the end
#   tools/gpu_check.sh measure      there: updates at 0.6b, 1.7b and 4b with a profile, and against
#                                   transformers + peft where they are installed
#
# Carry the checkout (tests/fixtures and assets are read at run time) with
# gpu-check/. Each takes under ten minutes; with FAST `run` leaves the sanitizers
# out. Results are written to $OUT, or gpu-check/out.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
dir=gpu-check

build() {
    set -e
    mkdir -p "$dir"
    # The messages name the executables; the human-readable log goes to stderr.
    # x86-64-v1 with run-time dispatch: nothing of this machine's CPU is assumed.
    cargo test --release --no-run --message-format=json-render-diagnostics >"$dir/messages.json"
    python3 - "$dir" <<'PYTHON'
import json, pathlib, shutil, sys
folder = pathlib.Path(sys.argv[1])
for line in (folder / "messages.json").read_text().splitlines():
    message = json.loads(line)
    target = message.get("target", {})
    if not message.get("executable"):
        continue
    if target["kind"] == ["test"]:
        shutil.copy(message["executable"], folder / "tests")
    elif target["kind"] == ["bin"] and not message["profile"]["test"]:
        shutil.copy(message["executable"], folder / "arca")
    elif target["kind"] == ["lib"]:
        shutil.copy(message["executable"], folder / "units")
PYTHON
    rm "$dir/messages.json"
    strip "$dir/tests" "$dir/arca" "$dir/units"
    local bytes
    bytes=$(cat "$dir/tests" "$dir/arca" "$dir/units" | wc -c)
    echo "$((bytes >> 20)) MiB in $dir/"
    if ((bytes > 64 << 20)); then
        echo "over the 64 MiB that may be carried" >&2
        exit 1
    fi
}

# What cuBLASLt there is: the toolkit's, or the one that PyTorch brought.
find_cublas() {
    python3 - <<'PYTHON' 2>/dev/null
import pathlib, sysconfig
found = [str(p.parent) for p in pathlib.Path(sysconfig.get_paths()["purelib"]).glob("nvidia/**/libcublasLt.so*")]
print(":".join(dict.fromkeys(found)))
PYTHON
}

declare -a summary
failures=0

# part NAME LIMIT COMMAND...: runs it with its output in a file, and notes how
# it went.
part() {
    local name=$1 limit=$2 start=$SECONDS log
    shift 2
    log="$out/${name// /-}.log"
    if timeout "$limit" "$@" >"$log" 2>&1; then
        summary+=("ok    $name ($((SECONDS - start)) s): $(grep -E '^test result|^[0-9]+ CUDA tests|ERROR SUMMARY|RACECHECK SUMMARY' "$log" | tail -2 | tr '\n' ' ')")
    else
        summary+=("FAIL  $name (exit $?, $((SECONDS - start)) s): see $log")
        failures=$((failures + 1))
        echo "== $name"
        grep -E '^test .*FAILED|panicked|^error|========= (Invalid|Error|Race|Uninit)|Caused by|^    [0-9]:' "$log" | head -40
        tail -15 "$log"
    fi
}

prepare() {
    out=${OUT:-$dir/out}
    mkdir -p "$out"
    local cublas
    cublas=$(find_cublas)
    export LD_LIBRARY_PATH="$cublas${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}" REQUIRE_CUDA=1
    nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader | tee "$out/device.txt"
}

finish() {
    printf '\n'
    printf '%s\n' "${summary[@]}"
    echo "$failures of ${#summary[@]} parts failed"
    ((failures == 0))
}

measure() {
    prepare
    local shape
    for shape in 0.6b 1.7b 4b; do
        part "update $shape" 90 "$dir/arca" bench update --shape "$shape" --device cuda --json \
            --profile-steps 2:3 --out "$out/trace-$shape.json"
        echo
        echo "== update $shape"
        grep -vE '^\{' "$out/update-$shape.log" | head -60
    done
    # What attention on Hopper's own products brings.
    part "update 1.7b attention mma" 60 env ARCA_ATTENTION=mma "$dir/arca" bench update --shape 1.7b --device cuda --json
    # What LoRA costs is what is missing without it at a rank of next to nothing.
    for r in 1 64; do
        part "update 1.7b r $r" 60 "$dir/arca" bench update --shape 1.7b --device cuda --json --lora-r "$r"
    done
    if python3 -c 'import torch, transformers, peft' 2>/dev/null; then
        part "against peft" 240 python3 tools/baseline_update.py --shape 1.7b --device cuda --micro 4 \
            --peers eager --rounds 3 --arca "$dir/arca" --out "$out" \
            --venv "$(python3 -c 'import sys; print(sys.prefix)')"
        cat "$out/against-peft.log"
    fi
    finish
}

run() {
    prepare
    part "all tests" 240 "$dir/tests"
    part "unit tests" 60 "$dir/units"
    part "train two steps" 60 "$dir/arca" train --device cuda --run "$out/run" --set train.steps=2 --set eval.limit=8
    if [[ ${1:-} != FAST ]] && command -v compute-sanitizer >/dev/null; then
        for tool in memcheck racecheck; do
            part "$tool" 150 compute-sanitizer --tool "$tool" --error-exitcode 9 "$dir/tests" --test-threads 1 kernels:: --skip emulator --skip ::cpu
        done
    fi
    part "kernel table" 120 "$dir/arca" bench kernels --device cuda --json
    part "kernel table attention mma" 60 env ARCA_ATTENTION=mma "$dir/arca" bench kernels --device cuda --shape 1.7b --json
    echo
    grep -vE '^\{' "$out/kernel-table.log" | head -8
    python3 - "$out/kernel-table.log" <<'PYTHON'
import json, sys
for line in open(sys.argv[1]):
    if line.startswith("{"):
        r = json.loads(line)
        print(f'{r["shape"][:9]:9} {r["op"]:28} {r["microseconds"]:10.1f} us {r["tflops_per_second"]:8.1f} TFLOP/s {r["gigabytes_per_second"]:8.0f} GB/s {100 * r["share_of_roof"]:6.1f} %')
PYTHON
    finish
}

case ${1:-} in
build) build ;;
run) run "${2:-}" ;;
measure) measure ;;
*)
    sed -n '2,13s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
    exit 2
    ;;
esac
