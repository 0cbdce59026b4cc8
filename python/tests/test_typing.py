"""The package is typed: its stub names what the compiled module has, and mypy, where it is installed, finds nothing."""
from __future__ import annotations

import ast
import pathlib
import shutil
import subprocess
import sys

import pytest

import ropeway
from ropeway import _core

PACKAGE = pathlib.Path(ropeway.__file__).parent


def members(thing):
    return {name for name in vars(thing) if not name.startswith("_")}


def test_the_stub_names_what_there_is():
    tree = ast.parse((PACKAGE / "_core.pyi").read_text())
    stated = {}
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            stated[node.name] = {one.name for one in node.body if isinstance(one, ast.FunctionDef)
                                 and not one.name.startswith("_")}
        elif isinstance(node, (ast.FunctionDef, ast.AnnAssign)):
            stated[getattr(node, "name", None) or node.target.id] = None
    assert set(stated) == members(_core)
    for name, methods in stated.items():
        if methods is not None:
            assert methods == members(getattr(_core, name)), name


@pytest.mark.parametrize("seen", ["what is installed", "nothing"])
def test_mypy_finds_nothing(tmp_path, seen):
    """With the types of torch and numpy, where they are, and for users who have neither."""
    pytest.importorskip("mypy", reason="mypy is not installed")
    # A copy: mypy reports nothing of what is installed, and finds nothing of it where it may not look there.
    shutil.copytree(PACKAGE, tmp_path / "ropeway", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    found = subprocess.run([sys.executable, "-m", "mypy", "--strict", "--ignore-missing-imports", "-p", "ropeway",
                            *(["--no-site-packages"] if seen == "nothing" else [])], timeout=300, cwd=tmp_path,
                           capture_output=True, text=True)
    assert found.returncode == 0, found.stdout + found.stderr


def test_every_public_name_says_what_it_is():
    for name in ropeway.__all__:
        thing = getattr(ropeway, name)
        if name != "Loader":  # an alias
            assert thing.__doc__, name
        for member, value in vars(thing).items() if isinstance(thing, type) else ():
            if not member.startswith("_") and callable(value):
                assert value.__doc__, f"{name}.{member}"
