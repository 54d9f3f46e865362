#!/usr/bin/env bash
# Print a line about .venv-newest after make test-newest, and one about the upper bound of filelock:   scripts/newest.sh pass|fail
set -euo pipefail
cd "$(dirname "$0")/.."
python=.venv-newest/bin/python

[ -x "$python" ] || { echo "newest versions: $1 (they could not be installed)"; exit; }
versions=$("$python" -m pip list --format=freeze 2>/dev/null | { grep -E '^(torch|transformers|lmms-eval|datasets)==' || true; })
echo "newest versions: $1 (${versions//$'\n'/ })"
overlay=$(mktemp -d)
trap 'rm -rf "$overlay"' EXIT
"$python" -m pip install -qq --no-deps --target "$overlay" filelock
newest=$(basename "$overlay"/filelock-*.dist-info .dist-info)
if error=$(PYTHONPATH="$PWD:$overlay" "$python" -c \
    'from lmms_eval.evaluator import _enable_reentrant_filelocks as patch; patch()' 2>&1); then
    echo "$newest: lmms-eval works with it, so the upper bound in pyproject.toml can go"
else
    echo "$newest: lmms-eval does not work with it (${error##*$'\n'}), so the upper bound in pyproject.toml stays"
fi
