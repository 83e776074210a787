#!/usr/bin/env bash
# Takes out each barrier, wait and fence of each kernel in turn, and says which
# of these mutants the kernel's tests do not notice. Some minutes; needs g++.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
cargo test --release --features emulator --test main -- --ignored --nocapture mutants::every_barrier_matters
