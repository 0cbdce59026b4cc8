"""The package is typed: its stub names what the compiled module has, and mypy, where it is installed, finds nothing."""
from __future__ import annotations

import ast
import os
import pathlib
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


def test_mypy_finds_nothing(tmp_path):
    pytest.importorskip("mypy", reason="mypy is not installed")
    environment = dict(os.environ)
    if PACKAGE.parent.name != "site-packages":  # not installed: run from its folder
        environment["MYPYPATH"] = str(PACKAGE.parent)
    subprocess.run([sys.executable, "-m", "mypy", "--strict", "--ignore-missing-imports", "-p", "ropeway"], check=True,
                   timeout=300, cwd=tmp_path, env=environment)


def test_every_public_name_says_what_it_is():
    for name in ropeway.__all__:
        thing = getattr(ropeway, name)
        if name != "Loader":  # an alias
            assert thing.__doc__, name
        for member, value in vars(thing).items() if isinstance(thing, type) else ():
            if not member.startswith("_") and callable(value):
                assert value.__doc__, f"{name}.{member}"
