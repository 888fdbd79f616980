#!/usr/bin/env bash
# Builds ncnn for C++ from its source package on PyPI, once, and prints the folder of its ncnnConfig.cmake:
#     tests/system/build_ncnn.sh native|aarch64
# It stays in SMALL_DETECTOR_CACHE (default: ~/.cache/small-detector) until the version or this file changes.
set -euo pipefail
cd "$(dirname "$0")/../.."

target=$1
python=$PWD/.venv/bin/python
version=$(sed -n 's/^ncnn==\([0-9.]*\).*/\1/p' requirements.txt)
sha256=ad8cdd63e9755cfa8e23b9b6d9ce46156077d80298a89e7c3ba325ffccfca200
cache=${SMALL_DETECTOR_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/small-detector}
recipe=$(sha256sum tests/system/build_ncnn.sh | cut -c1-8)
package=$cache/ncnn-$version.tar.gz
library=$cache/ncnn-$version-$recipe-$target

# One kind of processor (AVX2; ARMv8.2 with fp16) instead of one variant per kind: half the time, and no line of
# deploy/cpp depends on it.
settings=(-DCMAKE_BUILD_TYPE=Release -DNCNN_SIMPLEOCV=ON -DNCNN_VULKAN=OFF -DNCNN_PYTHON=OFF
    -DNCNN_BUILD_TOOLS=OFF -DNCNN_BUILD_EXAMPLES=OFF -DNCNN_BUILD_BENCHMARK=OFF -DNCNN_RUNTIME_CPU=OFF
    -DNCNN_AVX512=OFF -DNCNN_AVXVNNI=OFF -DNCNN_AVXNECONVERT=OFF -DNCNN_XOP=OFF -DNCNN_FMA4=OFF
    -DNCNN_ARM82DOT=OFF -DNCNN_ARM82FP16FML=OFF -DNCNN_ARM84BF16=OFF -DNCNN_ARM84I8MM=OFF -DNCNN_ARM86SVE=OFF)
case $target in
    native) ;;
    aarch64) settings+=(-DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64
        -DCMAKE_C_COMPILER=aarch64-linux-gnu-gcc -DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++) ;;
    *) echo "error: target $target: expected native or aarch64" >&2; exit 2 ;;
esac

# Runs a command silently; shows the end of what it said if it fails.
quietly() {
    "$@" >"$work/log" 2>&1 || { tail -n 40 "$work/log" >&2; echo "error: $1 failed for ncnn $version" >&2; exit 1; }
}

# By name pip refuses the source package, as it takes the day of the build for its version; it says where the file is.
download() {
    local pip=("$python" -m pip download --no-deps --no-binary ncnn --dest "$work") address
    "${pip[@]}" "ncnn==$version" >"$work/log" 2>&1 && return
    address=$(grep -oE -m 1 "[a-z]+://[^ ,]*/ncnn-$version\.tar\.gz" "$work/log" | head -n 1) ||
        quietly "${pip[@]}" "ncnn==$version"
    quietly "${pip[@]}" "$address"
}

# All is made in a folder of its own and renamed at the end: what bears the final name is whole.
build() {
    if [ ! -e "$package" ]; then
        download
        quietly sha256sum --check - <<<"$sha256  $work/ncnn-$version.tar.gz"
        mv "$work/ncnn-$version.tar.gz" "$package"
    fi
    tar -xf "$package" -C "$work"
    quietly cmake -S "$work/ncnn-$version" -B "$work/build" "${settings[@]}" -DCMAKE_INSTALL_PREFIX="$work/installed"
    quietly cmake --build "$work/build" -j "$(nproc)"
    quietly cmake --install "$work/build"
    mv -T "$work/installed" "$library"
}

if [ ! -d "$library" ]; then
    mkdir -p "$cache"
    exec 9>"$cache/lock"
    flock 9
    rm -rf "$cache"/building.* # of a build that was killed: under the lock there is no other
    work=$(mktemp -d "$cache/building.XXXXXX")
    trap 'rm -rf "$work"' EXIT
    if [ ! -d "$library" ]; then
        echo "building ncnn $version for $target into $library: a few minutes, once" >&2
        build
    fi
fi
echo "$library/lib/cmake/ncnn"
