#!/usr/bin/env bash
# A C++ compiler for the native engine: the one that is there, else the system's package. Fails where there is none.
set -uo pipefail

# CXX may carry options after the name
names=${CXX:-g++ clang++ c++}
[ -z "${CXX:-}" ] || names=${CXX%% *}
for name in $names; do
  command -v "$name" >/dev/null && exit 0
done
if [ -z "${CXX:-}" ] && command -v apt-get >/dev/null && [ "$(id -u)" = 0 ]; then
  echo "install_compiler.sh: installing g++ with apt-get" >&2
  apt-get -qq update >/dev/null &&
    DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends g++ >/dev/null && exit 0
fi
echo "install_compiler.sh: there is no C++ compiler${CXX:+ named $CXX} and none could be installed: install g++ 10 or" \
  "later (Debian: apt-get install g++), or set CXX" >&2
exit 1
