#!/bin/sh
# SPDX-License-Identifier: MIT
# build.sh OUTPUT [SNAPSHOT]: builds libnss_mesh.so.2 for GOARCH (CC cross-compiles), lets the gate walk the unstripped
# library and take out what the loader would do for a Go runtime, and strips it. SNAPSHOT is for tests: another path of
# the snapshot file. STRIP=no leaves the symbols, for a package builder that keeps them apart.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$(dirname "$1")"
out=$(cd "$(dirname "$1")" && pwd)/$(basename "$1")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
[ $# -lt 2 ] || export CGO_CFLAGS="-DMESH_SNAPSHOT=\"$2\""
cd "$here"
# Go's build ID would have the path of exports.map in it, and so would the bytes.
CGO_ENABLED=1 go build -tags nssmodule -buildmode=c-shared -trimpath -buildvcs=false -o "$work/libnss_mesh.so.2" -ldflags \
	"-E=meshnss_init -buildid= -extldflags '-Wl,-soname,libnss_mesh.so.2 -Wl,-z,now -Wl,-z,noseparate-code -Wl,--version-script=$here/exports.map'" .
GOARCH= CC= CGO_ENABLED=0 go run ../nss/gate -trim "$work/libnss_mesh.so.2"
if [ "${STRIP:-}" = no ]; then
	cp "$work/libnss_mesh.so.2" "$work/stripped"
else
	"${STRIP:-strip}" --strip-unneeded -o "$work/stripped" "$work/libnss_mesh.so.2"
fi

mv "$work/stripped" "$out"
