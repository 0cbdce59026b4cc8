#!/usr/bin/env python3
"""Checks that what the documents say is there: code, files and links.

    scripts/check_docs.py [ROOT | --compile COMMAND...]

- A ```cpp block is either a whole program (it has a main), which COMMAND must compile (it gets the file's name as its
  last argument; without --compile such blocks are only counted), or an excerpt: its lines stand one after the other,
  whatever their indentation, in a file under samples/, include/ or src/, which the build compiles. A block that is
  neither, because it shows what not to write, say, has the line `<!-- not compiled: REASON -->` just above it.
- A page that has the line `<!-- compiled together -->` is a guide: its blocks hold whole functions and classes, which
  COMMAND must compile, in the order of the page, after <ropeway/ropeway.hpp>. All guides are one file for the
  compiler, a namespace each, because Asio's headers take it longer than everything else here.
- A word in backticks that looks like a file of the project (src/..., tests/..., samples/demo.sh) exists.
- A relative link leads to a file.
- A ```sh block is what bash can read, and its scripts and programs (samples/demo.sh, build/src/cli/ropeway) are there: of
  a program, its name in the meson.build of its folder.
- An --option in backticks or in a shell block is one that a program or script of ours has.
- Every option of the program stands in its man page and its completion.
- Every ropeway::errc has its line in docs/troubleshooting.md, and every line there is of one.
- In a table whose last column is headed "proved by", each row names tests: `tests/FILE.cpp`: "title", "title". Each
  title stands there as a whole, as the first argument of a test or the first member of a case in a table.

One line for each complaint; the last line is `N passed, N failed`, counting blocks, paths, links and titles.
"""
import pathlib
import re
import subprocess
import sys
import tempfile

BLOCK = re.compile(r"^([ ]*)```(\w*)[^\n]*\n(.*?)^\1```[ ]*$", re.MULTILINE | re.DOTALL)
TICKS = re.compile(r"`([^`\s]+)`")
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
PLACES = ("include", "src", "tests", "samples", "benchmarks", "docs", "scripts", "packaging", "python", ".ci")
PATH = re.compile(r"^(?:%s)/[\w./*{},+-]*$" % "|".join(map(re.escape, PLACES)))
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z0-9-]*")
# Options of other people's programs.
FOREIGN = {"--custom-weight-loader", "--gpus", "--ipc", "--libs", "--reconfigure"}
ENUMERATOR = re.compile(r"^\s*(\w+) = \d+,", re.MULTILINE)
PROOF = re.compile(r"`(tests/[\w./-]+)`:((?:\s*\"[^\"]*\",?)+)")
TOGETHER = re.compile(r"^<!--\s*compiled together\s*-->$", re.MULTILINE)
# What a guide's blocks may use without saying so.
GUIDE = """#include <asio/io_context.hpp>
#include <asio/steady_timer.hpp>
#include <asio/thread_pool.hpp>
#include <asio/use_future.hpp>
#include <iostream>
#include <map>
#include <mutex>
#include <ropeway/ropeway.hpp>
#include <thread>
"""
EXEMPT = re.compile(r"<!--\s*not compiled:\s*\S.*-->\s*$")


def lines_of(text):
    """The lines that count: without indentation, blank lines and what an excerpt marks as left out."""
    return [line.strip() for line in text.splitlines() if line.strip()]


def holds(haystack, needle):
    size = len(needle)
    return any(haystack[at:at + size] == needle for at in range(len(haystack) - size + 1))


def exists(root, name):
    name = name.rstrip("/.,:")
    choice = re.search(r"\{([^{}]*)\}", name)
    if choice:
        return all(exists(root, name[:choice.start()] + one.strip() + name[choice.end():])
                   for one in choice.group(1).split(","))
    if "*" in name:
        return any(root.glob(name))
    # `src/plan/manifest` stands for the header and its source.
    return (root / name).exists() or any(root.glob(name + ".*"))


def titles_in(text):
    """The titles of tests, and of cases in tables; those that were written in two parts are put together."""
    joined = re.sub(r'"\s*\n\s*"', "", text)
    return set(re.findall(r'[({]\s*"((?:[^"\\]|\\.)*)"', joined))


def proofs(text):
    """Rows of the tables whose last column is headed "proved by"."""
    inside = False
    for line in text.splitlines():
        if not line.startswith("|"):
            inside = False
        elif line.rstrip(" |").endswith("| proved by"):
            inside = True
        elif inside and not set(line) <= set("|-: "):
            yield line


def shell_error(root, text):
    """What is wrong with a block of commands, as far as that can be told without running it."""
    done = subprocess.run(["bash", "-n"], input=text, capture_output=True, text=True, check=False)
    if done.returncode:
        return done.stderr.strip()
    code = re.sub(r"(^|\s)#.*", "", text, flags=re.MULTILINE)
    for word in re.findall(r"(?<![\w./~$-])[\w.-]+/[\w./-]+", code):
        inside = re.sub(r"^build[\w-]*/", "", word)
        if PATH.match(inside) and not (inside == word and exists(root, word)) and not built(root, inside):
            return f"there is no {word}"
    return ""


def built(root, name):
    """Whether the meson.build of its folder has such a program; or 'fuzz-' + something, and that something."""
    rules = root / pathlib.PurePath(name).parent / "meson.build"
    text = rules.read_text(encoding="utf-8") if rules.is_file() else ""
    program = pathlib.PurePath(name).name
    first, _, rest = program.partition("-")
    return f"executable('{program}'" in text or f"executable('{first}-' + " in text and f"'{rest}'" in text


def compile_error(command, text):
    with tempfile.TemporaryDirectory() as folder:
        file = pathlib.Path(folder, "block.cpp")
        file.write_text(text, encoding="utf-8")
        done = subprocess.run(command + [str(file)], capture_output=True, text=True, check=False)
        return done.stderr.strip() if done.returncode else ""


def guide_error(command, blocks):
    """`blocks` are (page, line, code); the compiler's complaints name page and line."""
    text = GUIDE
    for page, line, code in blocks:
        text += f'namespace guide_{re.sub(r"[^a-z]", "_", page.stem)} {{\n#line {line + 1} "{page}"\n{code}}}\n'
    return compile_error(command, text)


def known_options(root):
    known = set(FOREIGN)
    for top in ("src/cli", "packaging", "benchmarks", "samples", "tests", "scripts", "python/tests", "python/run.sh",
                "python/gpu.sh", ".ci"):
        for path in [root / top, *(root / top).rglob("*")]:
            if path.is_file() and (path.suffix in (".cpp", ".sh", ".py") or path.name == "run"):
                known |= set(OPTION.findall(path.read_text(encoding="utf-8")))
    known |= {"--no-" + option[2:] for option in known}
    return known | {"--help", "--version"}


def program_options(root):
    """What main.cpp gives the program: "--socket", "--digest,!--no-digest"."""
    text = (root / "src/cli/main.cpp").read_text(encoding="utf-8")
    return {found for words in re.findall(r'"(--[^"]*)"', text) for found in OPTION.findall(words.replace("!", " "))}


def error_codes(root):
    """What the header has, and what the table has."""
    header = (root / "include/ropeway/error.hpp").read_text(encoding="utf-8")
    table = (root / "docs/troubleshooting.md").read_text(encoding="utf-8")
    codes = set(ENUMERATOR.findall(header)) - {"ok"}
    after = table[table.index("## Every code"):]
    return codes, set(re.findall(r"^\| `(\w+)` \|", after, re.MULTILINE))


def check(root, command):
    sources = []
    for top in ("samples", "include", "src"):
        for path in sorted((root / top).rglob("*")):
            if path.suffix in (".cpp", ".hpp", ".h", ".cu"):
                sources.append(lines_of(path.read_text(encoding="utf-8")))
    documents = sorted(root.glob("*.md")) + sorted(root.glob("python/*.md"))
    for top in ("docs", "samples", "benchmarks", "tests"):
        documents += sorted((root / top).rglob("*.md"))
    passed, complaints, guides = 0, [], []

    def verdict(good, words):
        nonlocal passed
        if good:
            passed += 1
        else:
            complaints.append(words)

    options = known_options(root)
    for place in ("packaging/ropeway.1", "packaging/ropeway.bash"):
        text = (root / place).read_text(encoding="utf-8").replace("\\-", "-")
        for option in sorted(program_options(root)):
            verdict(re.search(re.escape(option) + r"(?![\w-])", text), f"{place}: {option} is missing")
    codes, explained = error_codes(root)
    for code in sorted(codes | explained):
        verdict(code in explained, f"docs/troubleshooting.md: errc::{code} is not explained")
        verdict(code in codes, f"docs/troubleshooting.md: there is no errc::{code}")

    for document in documents:
        text = document.read_text(encoding="utf-8")
        name = document.relative_to(root)
        for block in BLOCK.finditer(text):
            where = f"{name}:{text.count(chr(10), 0, block.start()) + 1}"
            if block.group(2) == "sh":
                error = shell_error(root, block.group(3))
                verdict(not error, f"{where}: {error}")
            if block.group(2) not in ("cpp", "c++", "C++"):
                continue
            above = text[:block.start()].rstrip().rsplit("\n", 1)[-1]
            code = block.group(3)
            if EXEMPT.search(above):
                continue
            if TOGETHER.search(text):
                guides.append((name, text.count(chr(10), 0, block.start()) + 1, code))
                continue
            if re.search(r"\bmain\s*\(", code):
                error = compile_error(command, code) if command else ""
                verdict(not error, f"{where}: does not compile: {error}")
            else:
                verdict(any(holds(source, lines_of(code)) for source in sources),
                        f"{where}: stands in no compiled file: {lines_of(code)[:1]}")
        prose = BLOCK.sub("", text)
        commands = [block.group(3) for block in BLOCK.finditer(text) if block.group(2) == "sh"]
        quoted = re.findall(r"`([^`]+)`", prose)
        for option in sorted({found for words in commands + quoted for found in OPTION.findall(words)}):
            verdict(option in options, f"{name}: nobody has the option {option}")
        for token in sorted(set(TICKS.findall(prose))):
            token = re.sub(r":\d+$", "", token)
            if PATH.match(token):
                verdict(exists(root, token), f"{name}: there is no {token}")
        for row in proofs(prose):
            named = PROOF.findall(row)
            if not named:
                verdict(False, f"{name}: no test is named for: {row.split('|')[1].strip()}")
            for file, titles in named:
                known = titles_in((root / file).read_text(encoding="utf-8")) if (root / file).is_file() else set()
                for title in re.findall(r'"([^"]*)"', titles):
                    verdict(title in known, f"{name}: {file} has no test \"{title}\"")
        for target in sorted(set(LINK.findall(prose))):
            if not re.match(r"[a-z]+:|#", target):
                verdict((document.parent / target.split("#")[0]).exists(), f"{name}: a link leads nowhere: {target}")
    error = guide_error(command, guides) if command and guides else ""
    verdict(not error, f"the guides' blocks do not compile: {error}")
    passed += len(guides) - 1 if guides and not error else 0
    return passed, complaints


def main(arguments):
    command = []
    root = pathlib.Path(__file__).resolve().parent.parent
    if arguments and arguments[0] == "--compile":
        command = arguments[1:]
    elif arguments:
        root = pathlib.Path(arguments[0])
    passed, complaints = check(root, command)
    print(*complaints, sep="\n", end="\n" if complaints else "")
    print(f"{passed} passed, {len(complaints)} failed")
    return 1 if complaints else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
