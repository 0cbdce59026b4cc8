"""The Python blocks of the pages in docs/."""
from __future__ import annotations

import pathlib
import re

import pytest

DOCS = pathlib.Path(__file__).parents[2] / "docs"


def text_of(page):
    """Or a skip, where there is no repository around the tests."""
    if not DOCS.exists():
        pytest.skip("the pages are in the repository only")
    return (DOCS / page).read_text(encoding="utf-8")


def blocks_of(page):
    """What the blocks define; those that need an engine are compiled only."""
    text, names = text_of(page), {}
    for block in re.finditer(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        above = text[:block.start()].rstrip().rsplit("\n", 1)[-1]
        code = compile("\n" * text.count("\n", 0, block.start(1)) + block.group(1), str(DOCS / page), "exec")
        if not above.startswith("<!-- not run:"):
            exec(code, names)
    return names
