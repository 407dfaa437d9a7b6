#!/usr/bin/env bash
# Builds wheel and source archive into dist/, checks them, and tries the wheel in a fresh virtual environment.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
version=$(sed -nE 's/^version *= *(.*)$/\1/p' settings.ini)
# a release has its tag's version, and a heading in the changelog
[ -z "${1:-}" ] || [ "$1" = "v$version" ] || { echo "the tag is $1, and settings.ini says $version" >&2; exit 1; }
grep -q "^## $version" CHANGELOG.md || { echo "CHANGELOG.md has no heading '## $version'" >&2; exit 1; }
grep -q "^version: $version" CITATION.cff || { echo "CITATION.cff does not say 'version: $version'" >&2; exit 1; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/build"
"$work/build/bin/pip" install -q build twine
rm -rf dist build
"$work/build/bin/python" -m build
"$work/build/bin/twine" check --strict dist/*
python3 -m venv "$work/fresh"
"$work/fresh/bin/pip" install -q dist/*.whl
cd "$work" # so that the wheel is what is imported
said=$("$work/fresh/bin/featreg" --version)
echo "$said"
[[ "$said" == *"$version"* ]] || { echo "the wheel says '$said', and settings.ini $version" >&2; exit 1; }
"$work/fresh/bin/featreg" methods
"$work/fresh/bin/featreg" reproduce fm-table8 --look > /dev/null
"$work/fresh/bin/python" -c "from fastai_featreg.all import FeatureMining; print(FeatureMining(layers=2))"
