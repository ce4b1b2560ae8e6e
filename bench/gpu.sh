#!/bin/sh
# What this machine's GPU does with the model: parity with the processor, fp8, kernels, training, play. Needs no installation:
#   sh bench/gpu.sh [--minutes 9] [--out gpu.md]          on a machine with a GPU
#   sh bench/gpu.sh --device cpu --tiny                   the same parts, small, on a processor
# PYTHON names the interpreter. Optional packages that are missing are reported as "not installed".
cd "$(dirname "$0")/.." || exit
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
export PYTHONUNBUFFERED=1
exec "${PYTHON:-python3}" -m bench.gpu "$@"
