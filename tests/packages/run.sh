#!/usr/bin/env bash
# Installs the Debian packages of build-deb/ (packaging/deb.sh makes them) into a clean Debian, builds the consumer
# against them there, and runs it and the program. Needs root, debootstrap and a Debian mirror; a few minutes.
#
#   tests/packages/run.sh [SUITE [MIRROR]]     bookworm, trixie, ...; this machine's own unless told
#
# The last line is `N passed, N failed`.
set -euo pipefail
cd "$(dirname "$0")/../.."
suite=${1-$(. /etc/os-release && echo "$VERSION_CODENAME")}

# Everything is mounted for this script alone, and gone with it.
if [ "${ROPEWAY_UNSHARED-}" != 1 ]; then
  [ "$(id -u)" -eq 0 ] || { echo 'tests/packages/run.sh: needs root, for debootstrap and chroot' >&2; exit 2; }
  command -v debootstrap >/dev/null || { echo 'tests/packages/run.sh: no debootstrap here' >&2; exit 2; }
  compgen -G 'build-deb/*.deb' >/dev/null || { echo 'tests/packages/run.sh: run packaging/deb.sh first' >&2; exit 2; }
  ROPEWAY_UNSHARED=1 exec unshare --mount --propagation private "$0" "$@"
fi
room=$(mktemp -d)
chmod 755 "$room" # apt downloads as a user of its own
trap 'umount "$room/proc" 2>/dev/null || true; rm -rf --one-file-system "$room"' EXIT

passed=0 failed=0
check() {
  local name=$1 said
  shift
  if said=$("$@" 2>&1); then
    passed=$((passed + 1))
    echo "ok: $name"
  else
    failed=$((failed + 1))
    printf '%s\nFAILED: %s\n' "$said" "$name"
  fi
}
inside() { chroot "$room" env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C.UTF-8 DEBIAN_FRONTEND=noninteractive "$@"; }
says() { # says WHAT COMMAND...: its output has WHAT in it
  local what=$1
  shift
  inside "$@" | tee /dev/stderr | grep -q -- "$what"
}
# Whether a page of the packages has a link to a file of the tree that is packaged, and the file is not where it leads.
lost_links() {
  local doc=$room/usr/share/doc/libropeway-dev page target
  for page in "$doc"/*.md "$doc"/docs/*.md; do
    grep -oE '\]\([^)#:]+' "$page" | cut -c3- | grep -vE '^https?$|^(\.\./)?(LICENSE|src|samples|tests|scripts|python|packaging|\.ci|CHANGELOG|CONTRIBUTING)' |
      while read -r target; do
        [ -e "$(realpath -m "${page%/*}/$target")" ] || echo "${page##*/}: $target"
      done
  done
}
links_lead_somewhere() { ls "$room/usr/share/doc/libropeway-dev/docs/routes.md" && ! lost_links | grep .; }
knows_cuda() { # as the machine that built it does
  local said says_none=yes
  said=$(inside ropeway doctor --no-trials) || return
  echo "$said"
  grep -q 'this build has no CUDA' <<<"$said" || says_none=no
  case $(cat build-deb/with-cuda) in
    yes) [ "$says_none" = no ] ;;
    no) [ "$says_none" = yes ] ;;
    *) false ;;
  esac
}
none_left() { ! inside dpkg -L libropeway0 libropeway-dev ropeway 2>/dev/null | grep -q .; }

echo "a clean $suite ..."
debootstrap --variant=minbase "$suite" "$room" ${2+"$2"} >"$room.log" 2>&1 ||
  { tail -n 20 "$room.log"; rm -f "$room.log"; echo '0 passed, 1 failed'; exit 1; }
rm -f "$room.log"
mount -t proc proc "$room/proc"
mkdir "$room/packages" "$room/consumer"
cp build-deb/*.deb "$room/packages/"
rm -f "$room"/packages/*-dbgsym_*.deb
cp tests/consumer/main.cpp "$room/consumer/"
inside apt-get -q -o APT::Update::Error-Mode=any update >/dev/null

# The library and the program alone first: what they need must come with them, and no compiler.
check 'libropeway0 and ropeway install' inside sh -c \
  'apt-get -q -y --no-install-recommends install /packages/libropeway0_*.deb /packages/ropeway_*.deb'
version=$(sed -n "s/^  version: '\(.*\)',$/\1/p" meson.build)
check 'ropeway --version' says "$version" ropeway --version
check 'ropeway doctor' inside ropeway doctor
check "it has device memory: $(cat build-deb/with-cuda)" knows_cuda
check 'ropeway bench' inside ropeway bench --size 16M --bucket 1M --repeats 2
check 'the man page is there' test -s "$room/usr/share/man/man1/ropeway.1.gz"

check 'libropeway-dev installs' inside sh -c 'apt-get -q -y --no-install-recommends install /packages/libropeway-dev_*.deb'
check 'its pages lead to its pages, pictures and headers' links_lead_somewhere
check 'a compiler installs' inside apt-get -q -y --no-install-recommends install g++ pkg-config
check 'the consumer compiles' inside sh -c \
  'cd /consumer && g++ -std=c++20 -Wall -Wextra -Werror main.cpp -o consumer $(pkg-config --cflags --libs ropeway)'
check 'the consumer runs, and catches what the library throws' says '^equal$' /consumer/consumer

for example in minimal_send minimal_receive; do
  check "$example compiles" inside sh -c \
    "cd /consumer && cp /usr/share/doc/libropeway-dev/examples/$example.cpp . &&
      g++ -std=c++20 -Wall -Wextra -Werror $example.cpp -o $example \$(pkg-config --cflags --libs ropeway)"
done
check 'a version goes from one to the other' says '^holds version 3, weight\[0\] = 3$' sh -c \
  'mkdir -m 700 /sockets && cd /consumer && { ./minimal_send /sockets/s & ./minimal_receive /sockets/s; wait; }'

check 'they can be removed' inside apt-get -q -y purge libropeway-dev libropeway0 ropeway
check 'and leave nothing' none_left

echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ]
