#!/usr/bin/env bash
# Check and measure everything on a new GPU, in one command:   scripts/first_gpu.sh [FOLDER]        (results/gpu)
#   proof    decoding of every family's tiny model in bfloat16, under sdpa and flash_attention_2 (tests/helpers/prove_decoding.py)
#   latency  stages, memory and selection loops at full size, on random weights (scripts/gpu_bench.sh)
# Nothing is downloaded. A failed proof stops the script, since the speed of wrong decoding is meaningless. Exit codes:
# 0 everything passed; 3 something could not be run, such as FlashAttention if it is not installed; others: a failure.
#
# DEVICE=cpu scripts/first_gpu.sh FOLDER tests the script on any machine, with small inputs and without FlashAttention.
# STEPS="kernels table4" runs only these steps of scripts/gpu_bench.sh.
set -euo pipefail
cd "$(dirname "$0")/.."

out=${1:-results/gpu}
device=${DEVICE:-cuda}
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
python=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}

echo "== proof"
proof=0
"$python" tests/helpers/prove_decoding.py --device "$device" --out "$out/proof.json" || proof=$?
if [ "$proof" != 0 ] && [ "$proof" != 3 ]; then
    echo "first day on a GPU: FAILED, decoding is not proven; nothing was measured" >&2
    exit "$proof"
fi

if [ "$device" = cpu ]; then scripts/gpu_bench.sh --smoke "$out"; else scripts/gpu_bench.sh "$out"; fi

if [ "$proof" = 3 ]; then
    echo "first day on a GPU: NOT PASSED, some of it could not be run (see \"not run\" above and $out/proof.json)" >&2
    exit 3
fi
echo "first day on a GPU: passed, results in $out"
