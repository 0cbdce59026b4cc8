#!/usr/bin/env python3
"""Completes a source distribution: run by `meson dist`, and so by whatever makes an sdist.

In the repository the library is a subproject that is a link to the root. A source distribution has no root above it, so
the link becomes a folder with the sources that the build reads, those that git knows.
"""
import os
import pathlib
import shutil
import subprocess
import sys

# What meson.build of the library reads when it is a subproject.
WANTED = ["LICENSE", "README.md", "include", "meson.build", "meson_options.txt", "packaging", "src"]


def main() -> None:
    made = pathlib.Path(os.environ["MESON_DIST_ROOT"])
    root = pathlib.Path(os.environ["MESON_SOURCE_ROOT"]).parent
    place = made / "subprojects" / "ropeway"
    if place.is_symlink() or place.is_file():
        place.unlink()
    listed = subprocess.run(["git", "-C", str(root), "ls-files", "-z", "--", *WANTED], check=True, capture_output=True)
    for name in filter(None, listed.stdout.decode().split("\0")):
        target = place / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(root / name, target)
    if not (made / "LICENSE").exists():
        shutil.copy2(root / "LICENSE", made / "LICENSE")


if __name__ == "__main__":
    sys.exit(main())
