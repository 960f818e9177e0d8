#!/bin/sh
# Makes a Debian 12 for aarch64 with Python 3.11 and the agent's libraries in ROOT, on an x86-64
# machine. About 700 MB; it takes one to two minutes.
#
#     make_root.sh ROOT [PYTHON]        PYTHON: one with pip, to download the wheels
#
# torch is not installed: predicting, waiting and methods in closed form need none.
set -eu
root=$1
python=${2:-python3}
here=$(dirname "$0")
checkout=$(cd "$here/../.." && pwd)

for program in mmdebstrap qemu-aarch64-static gcc; do
    command -v "$program" >/dev/null || {
        echo "make_root.sh: $program is missing; install it:" \
            "apt-get install mmdebstrap qemu-user-static gcc" >&2
        exit 1
    }
done
if [ "$(id -u)" != 0 ]; then
    echo "make_root.sh: root is needed, for chroot" >&2
    exit 1
fi

rm -rf "$root"
mkdir -p "$(dirname "$root")"
new="$root.new"
rm -rf "$new"
# "extract" unpacks the packages and runs no program of them.
mmdebstrap --quiet --mode=root --variant=extract --arch=arm64 \
    --include=python3,libpython3.11-stdlib,libgomp1,libstdc++6,ca-certificates bookworm "$new"
mv "$new/usr/bin/python3.11" "$new/usr/bin/python3.11-aarch64"
gcc -O2 -static -o "$new/usr/bin/python3.11" "$here/python.c"
cp "$(command -v qemu-aarch64-static)" "$new/usr/bin/qemu-aarch64-static"

wheels="$new/wheels"
"$python" -m pip download --quiet --disable-pip-version-check --only-binary=:all: \
    --platform manylinux_2_28_aarch64 --platform manylinux_2_27_aarch64 \
    --platform manylinux2014_aarch64 --python-version 3.11 --implementation cp \
    -c "$checkout/constraints.txt" -d "$wheels" \
    click cryptography numpy onnxruntime paho-mqtt pillow rich safetensors zstandard
for wheel in "$wheels"/*.whl; do
    "$python" -m zipfile -e "$wheel" "$new/libraries"
done
rm -r "$wheels"
mv "$new" "$root"
