#!/usr/bin/env bash
# Run all attempts to improve on IDPruner:   scripts/beyond.sh [key=value ...]        (into results/analysis/beyond/runs)
# The default is the first embedded model at a tenth of its tokens. For the second one, add
#   model=pocket_llava tasks=pocket_image keep=null tokens=14
# and for a full-size model: model=qwen25vl7b tasks=paper_image model.scorer=/path/to/selector. Then:
#   python -m harness.analyze heldout runs=results/analysis/beyond/runs/pocket out=results/analysis/beyond
set -euo pipefail
cd "$(dirname "$0")/.."

variants=results/analysis/beyond/variants.py:Variant
methods=(cdpruner dpp)
for lam in 0.3 0.5 0.7 0.9; do methods+=("{name: idpruner, lam: $lam}"); done
for share in 0.3 0.5 0.7 1.0; do methods+=("{name: qmmr, share: $share}"); done
for share in 0.3 0.5 0.7; do methods+=("{name: qmmr, share: $share, lam: 0.7}"); done
for lam in 0.3 0.9; do methods+=("{name: qmmr, lam: $lam}"); done
for share in 0.3 0.5; do methods+=("{name: qmmr, share: $share, relevance: mean}"); done
for other in "join: product" "join: max" "pick: dpp" "join: product, pick: dpp" "pick: spread"; do
    methods+=("{name: \"$variants\", $other}")
done
for alone in "pick: spread" "pick: cover" "compare: centred" "compare: whitened"; do
    methods+=("{name: \"$variants\", share: 0.0, $alone}")
done
printf -v swept '%s,' "${methods[@]}"

python=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}
exec "$python" -m harness -m runs=results/analysis/beyond/runs keep=0.1 "method=${swept%,}" "$@"
