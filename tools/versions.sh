#!/usr/bin/env bash
# The fast tests and two notebooks with the lowest or the newest fastai, torch and timm that settings.ini admits, in a
# fresh virtual environment.
# usage: [VENV=folder] tools/versions.sh lowest|newest [--record]
# --record writes a row of nbs/results/versions.csv; VENV keeps the environment and uses it again
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
case "${1:-}" in lowest|newest) ;; *) echo "usage: tools/versions.sh lowest|newest [--record]" >&2; exit 2;; esac
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
VENV=${VENV:-$work/venv}
[ -d "$VENV" ] || python3 -m venv "$VENV"
. "$VENV/bin/activate"
export MPLBACKEND=Agg

# torchvision follows torch: pip takes the release that was made for it
touch "$work/constraints.txt"
if [ "$1" = lowest ]; then
  awk -F= '$1 ~ /^requirements/ {sub(/^[^=]*= */, ""); print}' settings.ini | tr ' ' '\n' |
    sed -nE 's/^(fastai|torch|timm)>=(.*)$/\1==\2/p' > "$work/constraints.txt"
  [ "$(wc -l < "$work/constraints.txt")" = 3 ] ||
    { echo "settings.ini must give a lower bound of fastai, torch and timm" >&2; exit 1; }
fi
pip install -q --upgrade -c "$work/constraints.txt" -e '.[dev]'
pip uninstall -q -y onnxscript # torch 2.4 cannot be imported beside today's release of it; the tests below do without
pip list 2>/dev/null | grep -E '^(fastai|torch|torchvision|timm|numpy) '

status=0
python -m pytest -q --junitxml="$work/tests.xml" tests/test_{mined_pool,cam_loss,backbones}.py || status=$?
notebooks=(nbs/01_core.ipynb nbs/10_feature_mining.ipynb)
failed=0
for nb in "${notebooks[@]}"; do nbdev-test "$nb" --n-workers 1 || failed=$((failed+1)); done

[ "${2:-}" != --record ] || python tools/versions_row.py "$1" "$work/tests.xml" "${#notebooks[@]}" "$failed"
[ "$status" = 0 ] && [ "$failed" = 0 ]
