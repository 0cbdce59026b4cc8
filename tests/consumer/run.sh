#!/usr/bin/env bash
# Installs a build of ropeway into an empty folder, builds the consumer against it outside the tree, and runs it.
#
#   tests/consumer/run.sh BUILD pkg-config|cmake|meson     as an installed package
#   tests/consumer/run.sh BUILD static                     the same, of which only the static library is left
#   tests/consumer/run.sh BUILD subproject                 as a part of the consumer's own meson project
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
build=$(cd "$1" && pwd)
way=$2
room=$(mktemp -d)
trap 'rm -rf "$room"' EXIT
skip() { echo "$1"; exit 77; }

if [ "$way" != subproject ]; then
  DESTDIR=$room/root meson install -C "$build" --no-rebuild --quiet
  prefix=$(find "$room/root" -path '*/include/ropeway' -type d)
  prefix=${prefix%/include/ropeway}
  libdir=$(dirname "$(find "$prefix" -name 'libropeway.*' | head -n 1)")
  # Nothing comes along that is not ours to install.
  strays=$(find "$prefix" ! -type d ! -path "$prefix/include/ropeway/*" ! -path "$prefix/bin/ropeway" \
    ! -name 'libropeway.*' ! -name 'ropeway.pc' ! -name 'ropewayConfig*.cmake' ! -path "$prefix/share/*")
  [ -z "$strays" ] || { echo "installed, but not meant to be: $strays"; exit 1; }
  shared=$libdir/libropeway.so
  if [ "$way" = static ]; then
    [ -e "$libdir/libropeway.a" ] || skip 'no static library here: -Ddefault_library=both builds it'
    rm "$libdir"/libropeway.so*
  fi
  export LD_LIBRARY_PATH=$libdir${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
  export PKG_CONFIG_PATH=$libdir/pkgconfig PKG_CONFIG_SYSROOT_DIR=$room/root
fi

mkdir "$room/consumer"
cp "$here/main.cpp" "$room/consumer/"
cd "$room/consumer"
case "$way" in
  pkg-config)
    # With hidden names of its own, as many build: what the library throws must be caught all the same.
    # shellcheck disable=SC2046 -- words on purpose
    ${CXX:-g++} -std=c++20 -fvisibility=hidden -Wall -Wextra -Werror main.cpp -o consumer $(pkg-config --cflags --libs ropeway)
    # And the examples of the README: a version goes from one to the other.
    for example in minimal_send minimal_receive; do
      # shellcheck disable=SC2046
      ${CXX:-g++} -std=c++20 -Wall -Wextra -Werror "$here/../../samples/$example.cpp" -o "$example" $(pkg-config --cflags --libs ropeway)
    done
    ./minimal_send "$room/socket" >/dev/null &
    ./minimal_receive "$room/socket" | grep -q '^holds version 3, weight\[0\] = 3$' || { echo 'the examples did not meet'; exit 1; }
    wait $! ;;
  static)
    # shellcheck disable=SC2046 -- words on purpose
    ${CXX:-g++} -std=c++20 -Wall -Wextra -Werror main.cpp -o consumer $(pkg-config --static --cflags --libs ropeway)
    ./consumer
    rm consumer
    command -v cmake >/dev/null || skip 'CMake is not installed'
    cp "$here/cmake/CMakeLists.txt" .
    cmake -G Ninja -S . -B . -DCMAKE_PREFIX_PATH="$prefix" >cmake.log 2>&1 || { cat cmake.log; exit 1; }
    ninja --quiet ;;
  cmake)
    command -v cmake >/dev/null || skip 'CMake is not installed'
    cp "$here/cmake/CMakeLists.txt" .
    cmake -G Ninja -S . -B . -DCMAKE_PREFIX_PATH="$prefix" >cmake.log 2>&1 || { cat cmake.log; exit 1; }
    ninja --quiet ;;
  meson)
    cp "$here/meson/meson.build" .
    meson setup . out --wrap-mode=nofallback >meson.log 2>&1 || { cat meson.log; exit 1; }
    ninja -C out --quiet
    mv out/consumer . ;;
  subproject)
    cp "$here/meson/meson.build" .
    mkdir subprojects
    ln -s "$(cd "$here/../.." && pwd)" subprojects/ropeway
    meson setup . out --force-fallback-for=ropeway -Doptimization=0 -Ddebug=false >meson.log 2>&1 ||
      { cat meson.log; exit 1; }
    ninja -C out consumer
    mv out/consumer . ;;
  *) echo "usage: $0 BUILD pkg-config|cmake|meson|static|subproject" >&2; exit 2 ;;
esac
if [ "$way" = subproject ]; then
  shared=$PWD/out/subprojects/ropeway/src/libropeway.so
  export LD_LIBRARY_PATH=${shared%/*}
fi
./consumer
# Built as a static library, it exports nothing.
if [ -e "$shared" ]; then
  "$here/exports.py" "$shared"
  "$here/exports.py" "$shared" --self-test
  # Whoever links it asks for it by the name that changes with the binary interface.
  readelf -d consumer | grep -q 'NEEDED.*\[libropeway\.so\.[0-9]*\]' || { echo 'linked without a soname'; exit 1; }
fi
echo "the consumer works through $way"
