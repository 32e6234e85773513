#!/bin/sh
# Fetch the vendored front-end libraries again from the npm registry, through npm itself.
# Usage: flower_plugin/static/vendor/refresh.sh          (versions below; change them here and commit the result)
set -eu

UPLOT=1.6.32
IDIOMORPH=0.8.0
AXE=4.14.1

here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../../.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

fetch() { # name version
    (cd "$work" && npm pack --silent "$1@$2" >/dev/null && tar -xzf "$1-$2.tgz" && rm -rf "$1" && mv package "$1")
}

fetch uplot "$UPLOT"
cp "$work/uplot/dist/uPlot.iife.min.js" "$here/uplot-$UPLOT.min.js"
cp "$work/uplot/dist/uPlot.min.css" "$here/uplot-$UPLOT.min.css"
cp "$work/uplot/LICENSE" "$here/uplot.LICENSE"

fetch idiomorph "$IDIOMORPH"
cp "$work/idiomorph/dist/idiomorph.esm.js" "$here/idiomorph-$IDIOMORPH.esm.js"
cp "$work/idiomorph/LICENSE" "$here/idiomorph.LICENSE"

# Only the tests use axe-core, so it is not part of the package.
tests="$root/tests/browser/vendor"
mkdir -p "$tests"
fetch axe-core "$AXE"
cp "$work/axe-core/axe.min.js" "$tests/axe-$AXE.min.js"
cp "$work/axe-core/LICENSE" "$tests/axe-core.LICENSE"

cat >"$here/VERSIONS" <<LIST
uplot $UPLOT MIT https://github.com/leeoniya/uPlot
idiomorph $IDIOMORPH 0BSD https://github.com/bigskysoftware/idiomorph
LIST
cat >"$tests/VERSIONS" <<LIST
axe-core $AXE MPL-2.0 https://github.com/dequelabs/axe-core
LIST
