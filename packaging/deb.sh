#!/usr/bin/env bash
# Builds the Debian packages libropeway0, libropeway-dev and ropeway, on Debian 12 or 13, from what git knows of this
# tree. They lie in build-deb/ then, for apt install ./build-deb/*.deb.
#
#   packaging/deb.sh [OPTION...]     options go to dpkg-buildpackage, such as -j1
#
# With nvcc on the machine they carry device memory as well; ROPEWAY_CUDA=disabled leaves it out.
set -euo pipefail
cd "$(dirname "$0")/.."

for tool in dpkg-buildpackage dh; do
  command -v "$tool" >/dev/null || { echo "packaging/deb.sh: no $tool here (packages build-essential and debhelper)" >&2; exit 1; }
done
version=$(sed -n "s/^  version: '\(.*\)',$/\1/p" meson.build)
packaged=$(dpkg-parsechangelog -l packaging/debian/changelog -S Version)
[ "$version" = "$packaged" ] ||
  { echo "packaging/deb.sh: meson.build says $version, packaging/debian/changelog $packaged" >&2; exit 1; }

# Beside the tree: dpkg-buildpackage wants debian/ at its top, and puts what it makes one folder up.
room=$(mktemp -d)
trap 'rm -rf "$room"' EXIT
mkdir "$room/ropeway-$version"
git ls-files -z --cached --others --exclude-standard | tar --null --files-from=- -c | tar -x -C "$room/ropeway-$version"
cp -r packaging/debian "$room/ropeway-$version/debian"
(cd "$room/ropeway-$version" && dpkg-buildpackage --build=binary --no-sign "$@")

mkdir -p build-deb
rm -f build-deb/*.deb
mv "$room"/*.deb build-deb/
# For tests/packages/run.sh, which asks whether they have what this machine could give them.
if [ "${ROPEWAY_CUDA-auto}" != disabled ] && PATH=$PATH:/usr/local/cuda/bin:/opt/cuda/bin command -v nvcc >/dev/null; then
  echo yes
else
  echo no
fi >build-deb/with-cuda
ls -l build-deb
