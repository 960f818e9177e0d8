#!/bin/sh
# Builds the TensorRT engine of a bundle, on the box that will run it, and checks its features.
#
#   build-engine.sh BUNDLE [ENGINE_DIR]
#
# ENGINE_DIR is the value of engine_dir under [encoder] in agent.toml; without it, both use the
# user's cache folder. An existing engine is checked and kept. See docs/how-to/jetson.md.
set -eu

if [ $# -lt 1 ] || [ $# -gt 2 ]; then
    echo "usage: build-engine.sh BUNDLE [ENGINE_DIR]" >&2
    exit 2
fi
bundle=$1
engines=${2:-${XDG_CACHE_HOME:-$HOME/.cache}/fedclip-edge/engines}

if ! command -v fedclip-edge >/dev/null 2>&1; then
    echo "build-engine.sh: fedclip-edge is not on PATH; activate its environment first" >&2
    exit 127
fi

built() {
    if [ -d "$engines" ]; then find "$engines" -name '*.engine' | sort; fi
}

before=$(built)
began=$(date +%s)
echo "build-engine.sh: the first build takes minutes; the engine is kept in $engines"
code=0
fedclip-edge bundle verify "$bundle" --provider tensorrt --engine-dir "$engines" || code=$?
took=$(($(date +%s) - began))
if [ "$code" -ne 0 ]; then
    echo "build-engine.sh: failed after ${took} s with exit code $code; see the message above" >&2
    exit "$code"
fi
if [ "$(built)" = "$before" ]; then
    echo "build-engine.sh: the engine existed already; checked in ${took} s"
else
    echo "build-engine.sh: built and checked in ${took} s"
fi
