"""``python -m ropeway``: the program that the package carries, and what Python adds to its ``doctor``.

    python -m ropeway doctor [--socket PATH] [--json]   what this machine, and this Python, need for weights
    python -m ropeway watch --socket PATH               a sender and its receivers; and so on: see ``--help``
"""
from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from typing import Dict, Iterator, List, Optional

Finding = Dict[str, str]
"""As the program's: ``level`` (good, hint, bad), ``about``, ``said``, ``advice``."""


def program() -> Optional[str]:
    """The program that was installed with this package, or else one on the path."""
    here = os.path.join(sysconfig.get_path("scripts"), "ropeway")
    return here if os.access(here, os.X_OK) else shutil.which("ropeway")


def _finding(level: str, about: str, said: str, advice: str = "") -> Finding:
    return {"level": level, "about": about, "said": said, "advice": advice}


def _of_numpy() -> Finding:
    try:
        import numpy
    except ImportError:
        return _finding("hint", "numpy", "not installed", "needed only for loaders that take numpy's arrays")
    return _finding("good", "numpy", numpy.__version__)


def _of_torch() -> Iterator[Finding]:
    try:
        import torch
    except ImportError:
        yield _finding("hint", "torch", "not installed", "needed for CUDA memory that is torch's")
        return
    except OSError as error:
        yield _finding("bad", "torch", f"can't be loaded: {error}", "install it anew")
        return
    quick = hasattr(torch.Tensor, "__dlpack_c_exchange_api__")
    yield _finding("good" if quick else "hint", "torch", f"{torch.__version__}, " + (
        f"CUDA {torch.version.cuda}, {torch.cuda.device_count()} devices" if torch.cuda.is_available() else "no CUDA device"),
        "" if quick else "from torch 2.10 on, many tensors are looked at faster; or use Sender.prepare")
    allocator = os.environ.get("PYTORCH_ALLOC_CONF") or os.environ.get("PYTORCH_CUDA_ALLOC_CONF") or ""
    if torch.cuda.is_available():
        yield _finding("good", "torch's allocator", allocator or "as it comes")


def _of_sending() -> Finding:
    """A version from a sender to a receiver in this process."""
    import ropeway

    source, into = bytearray(range(256)), bytearray(256)
    try:
        with tempfile.TemporaryDirectory() as folder:
            os.chmod(folder, 0o700)
            path = os.path.join(folder, "w.sock")
            with ropeway.Sender(path) as sender, ropeway.Receiver() as receiver:
                receiver.connect(path).wait(30)
                sending = sender.send_weights(1, {"w": source})
                update = receiver.next_update().wait(30)
                if update is None:
                    raise RuntimeError("the sender has closed")
                update.load_into({"w": into}).wait(30)
                report = sending.wait(30)
    except Exception as error:  # whatever it is, it is what was asked for
        return _finding("bad", "from Python to Python", f"{type(error).__name__}: {error}",
                        "look at what the program's own trials say")
    if into != source:
        return _finding("bad", "from Python to Python", "other bytes arrived", "report this")
    return _finding("good", "from Python to Python", f"{report.receivers[0].route} route")


def findings() -> List[Finding]:
    """What Python adds to the program's doctor."""
    import ropeway

    found = [_finding("good", "Python", f"{platform.python_version()}, ropeway {ropeway.__version__} in "
                      f"{os.path.dirname(ropeway.__file__)}"), _of_numpy(), *_of_torch(), _of_sending()]
    if program() is None:
        found.append(_finding("hint", "the program", "not installed with this package, nor on the path",
                              "install the wheel again; a program called ropeway is a part of it"))
    return found


def doctor(arguments: List[str]) -> int:
    """Prints both, in the form that the program has. The status is the program's, or 5 for something bad here."""
    own = findings()
    as_json = "--json" in arguments
    status = 0
    theirs: List[Finding] = []
    if program() is not None:
        done = subprocess.run([str(program()), "doctor", *arguments], stdout=subprocess.PIPE if as_json else None, text=True,
                              check=False)
        status = done.returncode
        if as_json:
            said = json.loads(done.stdout) if done.stdout else {}
            theirs = said.get("findings", []) if isinstance(said, dict) else said
    if as_json:
        print(json.dumps({"command": "doctor", "findings": [*theirs, *own]}))
    else:
        for one in own:
            print(f"{one['level']:<6}{one['about']}: {one['said']}")
            if one["advice"]:
                print(f"      {one['advice']}")
    return status or (5 if any(one["level"] == "bad" for one in own) else 0)


def main(arguments: List[str]) -> int:
    if arguments[:1] == ["doctor"] and not {"--help", "-h"} & set(arguments):
        return doctor(arguments[1:])
    found = program()
    if found is None:
        print("ropeway: the program is not installed with this package, nor on the path; only `doctor` works without it",
              file=sys.stderr)
        return 5
    sys.stdout.flush()
    os.execv(found, [found, *arguments])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
