#!/usr/bin/env bash
# Installs nvcc 13.0 from PyPI into .cuda-toolchain/ of this checkout, where
# build.rs finds it by itself. Needs python3 with venv and pip; no GPU, no root.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

folder=.cuda-toolchain
nvcc=$(echo "$folder"/lib/python3*/site-packages/nvidia/cu13/bin/nvcc)
if [[ -x $nvcc ]] && "$nvcc" --version >/dev/null 2>&1; then
    echo "there already: $nvcc"
    exit 0
fi
if ! python3 -c 'import venv, ensurepip' 2>/dev/null; then
    echo "needs python3 with venv and pip (Debian: apt install python3-venv); or install the CUDA toolkit and set CUDA_HOME" >&2
    exit 1
fi
python3 -m venv "$folder"
"$folder/bin/pip" install --quiet --disable-pip-version-check \
    nvidia-cuda-nvcc==13.0.88 nvidia-cuda-crt==13.0.88 nvidia-nvvm==13.0.88 \
    nvidia-cuda-runtime==13.0.96 nvidia-cuda-cccl==13.0.85
nvcc=$(echo "$folder"/lib/python3*/site-packages/nvidia/cu13/bin/nvcc)
"$nvcc" --version | tail -1
# The next build is to look for it.
touch build.rs
