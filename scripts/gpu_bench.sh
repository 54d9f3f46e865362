#!/usr/bin/env bash
# Run all measurements on a GPU, in one command:   scripts/gpu_bench.sh [FOLDER]        (results/bench)
#   kernels  selection loops against public implementations
#   table4   table 4 of arXiv 2602.13315 (conf/experiment/table4.yaml), with every method
#   sweep    from how many visual tokens on the best-known methods save time, batch 1 and 8
# STEPS="kernels table4" runs only these steps; ROUNDS="warmup=1 repeats=3" takes less time. Weights are random, and nothing
# is downloaded. FlashAttention is used if it is installed (pip install flash-attn), else sdpa.
#
# scripts/gpu_bench.sh --smoke FOLDER runs the same steps on any machine, with a tiny model and small inputs.
set -euo pipefail
cd "$(dirname "$0")/.."

smoke=""
if [ "${1:-}" = --smoke ]; then smoke=yes; shift; fi
out=${1:-results/bench}
python=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}
rounds=${ROUNDS:-warmup=2 repeats=7}
model=(model=qwen25vl7b weights=random model.device=cuda)
clip=()
sizes="576,1024,2691,5000,10000" batches=1,8
steps=${STEPS:-kernels table4 sweep}
loops=() # arguments of the selection loops

if [ -n "$smoke" ]; then
    model=(model=qwen25vl7b weights=tiny model.device=cpu model.dtype=float32 new_tokens=2 text_tokens=16)
    clip=("sizes=[2x4x6]") sizes=4x6,6x8 batches=1
    rounds=${ROUNDS:-warmup=0 repeats=1}
    loops=("sizes=[64]" width=32 load=idle warmup=0 repeats=1)
else
    "$python" -c "import sys, torch; sys.exit(0 if torch.cuda.is_available() else 'error: torch sees no GPU; try --smoke FOLDER')"
    if "$python" -c "import flash_attn" 2>/dev/null; then model+=(model.attn=flash_attention_2); fi
fi
read -ra rounds <<<"$rounds"
model+=("${rounds[@]}")

bench() { "$python" -m harness.bench "$@"; }
for step in $steps; do
    echo "== $step"
    case $step in
        kernels) bench kernels "${loops[@]}" out="$out/kernels" ;;
        table4) bench experiment=table4 "${model[@]}" methods=all "${clip[@]}" out="$out/table4" plots="$out/table4" ;;
        sweep)
            bench "${model[@]}" "methods=[idpruner,visionselector,visionzip,vispruner,scope,divprune,fastv,resize]" keep=0.25 \
                "sizes=[$sizes]" "batch=[$batches]" out="$out/sweep" plots="$out/sweep"
            ;;
        *) echo "error: no step $step: choose from kernels table4 sweep" >&2 && exit 2 ;;
    esac
done
echo "wrote $out"
