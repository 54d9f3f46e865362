#!/usr/bin/env bash
# Write constraints.txt and constraints-lowest.txt from pyproject.toml:   make lock
#   constraints.txt         what pip installs today, with all extras except flash, whose wheel depends on the GPU
#   constraints-lowest.txt  the same with every dependency at its lower bound; needs Python 3.11 or 3.12
# Both files have names and versions only, so they fit other platforms, for which pip may add packages.
set -euo pipefail
cd "$(dirname "$0")/.."

committed=(torch==2.15.0 torchvision==0.29.2 transformers==5.23.0)  # the committed results ran with these
venv=$(mktemp -d)
trap 'rm -rf "$venv"' EXIT

lock() { # FILE HEADING REQUIREMENT...
    local file=$1 heading=$2
    shift 2
    "${PYTHON:-python3}" -m venv --clear "$venv"
    "$venv/bin/pip" install -qq "$@"
    "$venv/bin/pip" freeze --exclude pruning-harness | sed 's/+[^ ;]*$//' | sort -f >"$venv/versions"
    if grep -vE '^[A-Za-z0-9._-]+==[A-Za-z0-9._]+$' "$venv/versions"; then
        echo "$file: expected name==version on every line; pip freeze printed the above" >&2
        exit 1
    fi
    { echo "# $heading; made by \`make lock\` with Python $("$venv/bin/python" -c 'import platform as p; print(p.python_version())')." &&
        cat "$venv/versions"; } >"$file"
}

lock constraints.txt "What is installed" ".[test,pocket,slurm,photo]" "${committed[@]}"
mapfile -t lowest < <("$venv/bin/python" scripts/bounds.py lowest)
lock constraints-lowest.txt "Every dependency at its lower bound" . pytest pytest-xdist hypothesis "${lowest[@]}"
