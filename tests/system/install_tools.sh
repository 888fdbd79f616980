#!/usr/bin/env bash
# Installs the Debian packages that tests marked `system` need; where it cannot, says in one line what is missing.
set -euo pipefail

missing=()
need() { # a command, and the package that has it
    command -v "$1" >/dev/null || missing+=("$2")
}
need cmake cmake
need make make
need c++ g++
need aarch64-linux-gnu-g++ g++-aarch64-linux-gnu
command -v qemu-aarch64-static >/dev/null || need qemu-aarch64 qemu-user
need chromium chromium
[ -n "$(find /usr/include /usr/local/include -maxdepth 2 -name jpeglib.h 2>/dev/null)" ] || missing+=(libjpeg-dev)
[ ${#missing[@]} -gt 0 ] || exit 0

fail() {
    echo "error: missing: ${missing[*]}; $1" >&2
    exit 2
}
command -v apt-get >/dev/null || fail "install what this system calls these Debian packages"
[ "$(id -u)" = 0 ] || fail "as root: apt-get install ${missing[*]}"
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq >/dev/null || fail "apt-get update failed"
apt-get install -qq -y --no-install-recommends "${missing[@]}" >/dev/null || fail "apt-get install failed"
