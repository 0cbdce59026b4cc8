#!/usr/bin/env python3
"""Checks who may include whom: the house of docs/architecture.md, kept by a machine.

    scripts/check_layers.py [ROOT]      checks the tree; one line for each rule, exit status 1 if one is broken
    scripts/check_layers.py --self-test breaks each rule in a tree of its own and sees it noticed
"""
import pathlib
import re
import sys
import tempfile

# A layer may include itself, the public headers, and these. Nothing else of ours.
LAYERS = {
    "base": set(),
    "plan": {"base"},
    "protocol": {"base", "plan"},
    "memory": {"base"},
    "wire": {"base"},
    "checkpoint": {"base"},
    "session": {"base", "plan", "protocol", "memory", "wire"},
    "api": {"base", "plan", "protocol", "memory", "wire", "session"},
    "cli": {"base", "memory", "wire"},
    "precompiled": set(),  # read before any file of some targets; includes what is public, and is included by none
}
# What a plan comes to is a list of copies, or of what a digest is made of: pure data as well.
ALSO = {("plan", "src/memory/copy.hpp"), ("plan", "src/memory/digest.hpp")}
WITHOUT_ASIO = {"plan", "protocol", "memory"}
SUFFIXES = {".hpp", ".h", ".cpp", ".cu"}
CUDA = re.compile(r"^(cuda|cuda_.*|cu(blas|fft|rand|solver|sparse).*|driver_types|nvrtc|nccl)\.h(pp)?$|^cub/|^thrust/")
# Comes with CUDA, and is for profilers: of what the event loop does, not of memory.
NVTX = re.compile(r"^nvtx3/")
COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.DOTALL)
INCLUDE = re.compile(r'^[ \t]*#[ \t]*include[ \t]*(?:"([^"]+)"|<([^>]+)>)', re.MULTILINE)


class Tree:
    def __init__(self, root):
        self.root = pathlib.Path(root)
        self.files = {}
        for top in ("include", "src", "samples"):
            for path in sorted((self.root / top).rglob("*")):
                if path.suffix in SUFFIXES and path.is_file():
                    self.files[path.relative_to(self.root)] = path.read_text(encoding="utf-8")
        self.includes = {path: self._ours_and_others(path) for path in self.files}

    def _ours_and_others(self, path):
        ours, others = set(), set()
        for quoted, angled in INCLUDE.findall(self.files[path]):
            name = quoted or angled
            for place in (path.parent, pathlib.Path("include"), pathlib.Path("src")):
                if place / name in self.files:
                    ours.add(place / name)
                    break
            else:
                others.add(name)
        return ours, others

    def reached(self, path):
        """Every project file that `path` includes, itself first, with the way there."""
        ways, todo = {path: [path]}, [path]
        while todo:
            at = todo.pop()
            for next_one in sorted(self.includes[at][0]):
                if next_one not in ways:
                    ways[next_one] = ways[at] + [next_one]
                    todo.append(next_one)
        return ways


def layer(path):
    if path.parts[0] == "include":
        return "public"
    if path.parts[0] == "samples":
        return "samples"
    return path.parts[1] if len(path.parts) > 2 else ""


def is_asio(name):
    return name == "asio.hpp" or name.startswith(("asio/", "boost/asio"))


def layers_look_down_only(tree):
    for path, (ours, _) in tree.includes.items():
        here = layer(path)
        if here == "":
            yield f"{path}: lies in no layer"
            continue
        if here not in LAYERS and here not in ("public", "samples"):
            yield f"{path}: unknown layer {here}; name it in scripts/check_layers.py"
            continue
        allowed = LAYERS.get(here, set()) | {here, "public"}
        for other in sorted(ours):
            if layer(other) not in allowed and (here, other.as_posix()) not in ALSO:
                yield f"{path} includes {other}"


def pure_layers_do_not_reach_asio(tree):
    for path in tree.files:
        if layer(path) not in WITHOUT_ASIO:
            continue
        for other, way in tree.reached(path).items():
            for name in sorted(filter(is_asio, tree.includes[other][1])):
                yield " -> ".join(map(str, way)) + f" -> <{name}>"


def no_circles(tree):
    done, reported = set(), set()

    def walk(path, trail):
        if path in trail:
            circle = trail[trail.index(path):]
            if frozenset(circle) not in reported:
                reported.add(frozenset(circle))
                yield " -> ".join(map(str, circle + [path]))
            return
        if path in done:
            return
        for other in sorted(tree.includes[path][0]):
            yield from walk(other, trail + [path])
        done.add(path)

    for path in tree.files:
        yield from walk(path, [])


def one_file_knows_asio_versions(tree):
    for path, text in tree.files.items():
        if path.as_posix() == "include/ropeway/asio.hpp":
            continue
        code = COMMENT.sub(lambda comment: "\n" * comment.group().count("\n"), text)
        for number, line in enumerate(code.splitlines(), 1):
            if re.search(r"asio/experimental|asio::experimental|ASIO_VERSION", line):
                yield f"{path}:{number}: {line.strip()}"


def public_headers_are_plain(tree):
    for path, (_, others) in tree.includes.items():
        if layer(path) == "public":
            for name in sorted(others):
                if CUDA.search(name) or NVTX.search(name) or name.startswith(("liburing", "boost/", "doctest")):
                    yield f"{path} includes <{name}>"


def cuda_and_liburing_stay_in_their_rooms(tree):
    for path, (_, others) in tree.includes.items():
        for name in sorted(others):
            room = ("src/memory/cuda" if CUDA.search(name) else "src/session" if NVTX.search(name) else
                    "src/checkpoint" if name.startswith("liburing") else "")
            if room and path.parts[0] == "src" and not path.as_posix().startswith(room + "/"):
                yield f"{path} includes <{name}>"


def kernels_see_c_headers_only(tree):
    # nvcc can't compile Asio's coroutines, and needs nothing else of the library.
    for path in tree.files:
        if path.suffix == ".cu":
            for other in tree.reached(path):
                if other.suffix not in (".cu", ".h"):
                    yield f"{path} includes {other}"


RULES = [layers_look_down_only, pure_layers_do_not_reach_asio, no_circles, one_file_knows_asio_versions,
         public_headers_are_plain, cuda_and_liburing_stay_in_their_rooms, kernels_see_c_headers_only]


def check(root):
    tree = Tree(root)
    return {rule.__name__: list(rule(tree)) for rule in RULES}


def self_test():
    good = {
        "include/ropeway/tensor.hpp": "#include <vector>\n",
        "include/ropeway/asio.hpp": "#include <asio/version.hpp>\n#include <asio/experimental/x.hpp>\n",
        "include/ropeway/sender.hpp": '#include "ropeway/asio.hpp"\n#include "ropeway/tensor.hpp"\n',
        "src/base/fd.hpp": "#include <unistd.h>\n",
        "src/plan/plan.hpp": '#include "base/fd.hpp"\n#include "ropeway/tensor.hpp"\n',
        "src/wire/wire.cpp": '#include "ropeway/asio.hpp"\n',
        "src/memory/cuda/k.h": "#include <stdint.h>\n",
        "src/memory/cuda/k.cu": '#include "memory/cuda/k.h"\n#include <cuda_bf16.h>\n',
    }
    bad = {
        "layers_look_down_only": {"src/plan/up.cpp": '#include "wire/x.hpp"\n', "src/wire/x.hpp": ""},
        "pure_layers_do_not_reach_asio": {"src/plan/a.cpp": '#include "ropeway/sender.hpp"\n'},
        "no_circles": {"src/base/a.hpp": '#include "b.hpp"\n', "src/base/b.hpp": '#include "base/a.hpp"\n'},
        "one_file_knows_asio_versions": {"src/wire/v.cpp": "#if ASIO_VERSION > 1\n#endif\n"},
        "public_headers_are_plain": {"include/ropeway/c.hpp": "#include <cuda_runtime.h>\n"},
        "cuda_and_liburing_stay_in_their_rooms": {"src/wire/u.cpp": "#include <liburing.h>\n"},
        "kernels_see_c_headers_only": {"src/memory/cuda/k2.cu": '#include "ropeway/tensor.hpp"\n'},
    }
    assert set(bad) == {rule.__name__ for rule in RULES}
    failed = 0
    for expected, extra in [(None, {}), *bad.items()]:
        with tempfile.TemporaryDirectory() as root:
            for name, text in {**good, **extra}.items():
                path = pathlib.Path(root, name)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text, encoding="utf-8")
            broken = {name for name, complaints in check(root).items() if complaints}
        if broken != ({expected} if expected else set()):
            print(f"self-test: {expected or 'a good tree'}: complained about {sorted(broken)}")
            failed += 1
    print(f"{len(bad) + 1 - failed} passed, {failed} failed")
    return 1 if failed else 0


def main(arguments):
    if arguments == ["--self-test"]:
        return self_test()
    root = arguments[0] if arguments else pathlib.Path(__file__).resolve().parent.parent
    passed = failed = 0
    for rule, complaints in check(root).items():
        for complaint in complaints:
            print(f"{rule}: {complaint}")
        failed += bool(complaints)
        passed += not complaints
    print(f"{passed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
