#!/bin/sh
# SPDX-License-Identifier: MIT
# build.sh OUTPUT [SNAPSHOT]: builds libnss_mesh.so.2 for GOARCH (CC cross-compiles), lets the gate walk the unstripped
# library and take out what the loader would do for a Go runtime, and strips it. SNAPSHOT is for tests: another path of
# the snapshot file.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$(dirname "$1")"
out=$(cd "$(dirname "$1")" && pwd)/$(basename "$1")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
[ $# -lt 2 ] || export CGO_CFLAGS="-DMESH_SNAPSHOT=\"$2\""
cd "$here"
CGO_ENABLED=1 go build -buildmode=c-shared -trimpath -buildvcs=false -o "$work/libnss_mesh.so.2" -ldflags \
	"-E=meshnss_init -extldflags '-Wl,-soname,libnss_mesh.so.2 -Wl,-z,now -Wl,-z,noseparate-code -Wl,--version-script=$here/exports.map'" .
GOARCH= CC= CGO_ENABLED=0 go run ../nss/gate -trim "$work/libnss_mesh.so.2"
"${STRIP:-strip}" --strip-unneeded -o "$work/stripped" "$work/libnss_mesh.so.2"

mv "$work/stripped" "$out"
