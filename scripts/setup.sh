#!/usr/bin/env bash
# Installs what ropeway is built with, on Debian 12 or 13. Does nothing, and needs no network, when it is all there.
#
#   scripts/setup.sh          what building and testing needs
#   scripts/setup.sh --ci     also the linters and clang, which .ci/run uses
set -euo pipefail

want_ci=false
case "${1-}" in
  '') ;;
  --ci) want_ci=true ;;
  *) echo "usage: $0 [--ci]" >&2; exit 2 ;;
esac

have() { command -v "$1" >/dev/null 2>&1; }

# What is needed, one test a line: the packages named are only looked at if the test fails, so that a machine that is
# no Debian but has everything works as well.
header() { local dir; for dir in /usr/include /usr/local/include; do [ -e "$dir/$1" ] && return; done; return 1; }
boost() {
  # Boost.Describe came with 1.77, and Debian 12's default Boost is older than that.
  local line dir
  for dir in /usr/include /usr/local/include; do
    [ -e "$dir/boost/json.hpp" ] || continue
    line=$(grep -m1 '^#define BOOST_VERSION ' "$dir/boost/version.hpp") || continue
    [ "${line##* }" -ge 107700 ] && return
  done
  return 1
}
boost_packages() {
  local codename
  codename=$(. /etc/os-release && echo "${VERSION_CODENAME-}")
  if [ "$codename" = bookworm ]; then
    echo libboost1.81-dev libboost-json1.81-dev
  else
    echo libboost-dev libboost-json-dev
  fi
}

missing() {
  have g++ || echo g++
  have meson || echo meson
  have ninja || echo ninja-build
  have pkg-config || echo pkg-config
  have cmake || echo cmake
  have python3 || echo python3
  python3 -c 'import venv, ensurepip' 2>/dev/null || echo python3-venv   # samples/demo.sh and python/run.sh use one
  [ -e "$(python3 -c 'import sysconfig; print(sysconfig.get_path("include"))' 2>/dev/null)/Python.h" ] ||
    echo python3-dev                                                     # what python/run.sh compiles with
  [ -e /etc/ssl/certs/ca-certificates.crt ] || echo ca-certificates      # so that it can
  have curl || echo curl                                                 # what README.md asks the sample server with
  header asio.hpp || echo libasio-dev
  boost || boost_packages
  header liburing.h || echo liburing-dev
  header doctest/doctest.h || echo doctest-dev
  header CLI/CLI.hpp || echo libcli11-dev
  header xxhash.h || echo libxxhash-dev
  if $want_ci; then
    have ccache || echo ccache
    have git || echo git
    have doxygen || echo doxygen
    have clang++-19 || echo clang-19
    compgen -G '/usr/lib/llvm-19/lib/clang/*/lib/*/libclang_rt.tsan*' >/dev/null || echo libclang-rt-19-dev
    have clang-tidy-19 || echo clang-tidy-19
    have clang-format-14 || { grep -q '^VERSION_CODENAME=bookworm' /etc/os-release && echo clang-format-14; }
  fi
  return 0
}

mapfile -t packages < <(missing | tr ' ' '\n')
[ "${#packages[@]}" -gt 0 ] || exit 0

say_what_to_do() {
  printf 'setup: %s\nsetup: install these yourself and try again: %s\n' "$1" "${packages[*]}" >&2
  exit 1
}
have apt-get || say_what_to_do 'this is no Debian: apt-get is not here'
as_root=()
if [ "$(id -u)" -ne 0 ]; then
  have sudo || say_what_to_do 'neither root nor sudo'
  as_root=(sudo)
fi
export DEBIAN_FRONTEND=noninteractive
# Without recommends: libasio-dev recommends Debian 12's old Boost, which conflicts with the one we need.
apt=("${as_root[@]}" env DEBIAN_FRONTEND=noninteractive
     apt-get -q -y -o Acquire::Retries=5 -o DPkg::Lock::Timeout=300 -o APT::Update::Error-Mode=any)

echo "setup: installing ${packages[*]}"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
for try in 1 2 3; do
  if "${apt[@]}" update >"$log" 2>&1 &&
     "${apt[@]}" install --no-install-recommends "${packages[@]}" >>"$log" 2>&1; then
    mapfile -t packages < <(missing | tr ' ' '\n')
    [ "${#packages[@]}" -eq 0 ] || say_what_to_do 'installed, and yet not found'
    exit 0
  fi
  echo "setup: attempt $try failed" >&2
  [ "$try" = 3 ] || sleep $((try * 5))
done
tail -n 15 "$log" >&2
say_what_to_do 'apt-get failed (its last lines stand above); is the network reachable?'
