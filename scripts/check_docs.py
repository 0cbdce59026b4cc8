#!/usr/bin/env python3
"""Checks that what the documents say is there: code, files and links.

    scripts/check_docs.py [ROOT | --compile COMMAND... | --self-test]

- A ```cpp block is either a whole program (it has a main), which COMMAND must compile (it gets the file's name as its
  last argument; without --compile such blocks are only counted), or an excerpt: its lines stand one after the other,
  whatever their indentation, in a file under samples/, include/ or src/, which the build compiles. A block that is
  neither, because it shows what not to write, say, has the line `<!-- not compiled: REASON -->` just above it.
- A page that has the line `<!-- compiled together -->` is a guide: its blocks hold whole functions and classes, which
  COMMAND must compile, in the order of the page, after <ropeway/ropeway.hpp>. All guides are one file for the
  compiler, a namespace each, because Asio's headers take it longer than everything else here.
- A word in backticks that looks like a file of the project (src/..., tests/..., samples/demo.sh) exists.
- A relative link leads to a file, and its #anchor to a heading there; [words][name] has its [name]: address.
- An address elsewhere is of a place that is named below, where somebody has looked, so that a slip of the pen is found
  without a network; links into one repository are all of one commit.
- Commands stand in ```sh blocks. scripts/run_readme.py runs them; one that it can't run has the line
  `<!-- not run: REASON -->` just above it, and what else stands there is a note that it knows.
- A ```sh block is what bash can read, and its scripts and programs (samples/demo.sh, build/src/cli/ropeway) are there: of
  a program, its name in the meson.build of its folder.
- An --option in backticks or in a shell block is one that a program or script of ours has. Where `ropeway` is called, in
  a shell block or in backticks (also as `send --check`), its subcommand is there and has the options that follow.
- A -Dname=value is an option of meson_options.txt, or one of meson's own, and has such a value.
- A `class::name` of a class or enum of the public headers is in it, errc:: also outside backticks; a lower_case name in
  backticks is somewhere in the code, and so is a word that stands there alone.
- An HTTP request in backticks (`POST /embed`), or of curl, is an endpoint of the sample server, as is each `/name` of a
  page that has its requests.
- Every option of the program stands in its man page and its completion.
- Every ropeway::errc has its line in docs/troubleshooting.md, and every line there is of one.
- In a table whose last column is headed "proved by", each row names tests: `tests/FILE.cpp`: "title", "title". Each
  title stands there as a whole, as the first argument of a test or the first member of a case in a table.

With --self-test a page with one mistake of each kind that can be told without a compiler must get one complaint for each.

One line for each complaint; the last line is `N passed, N failed`, counting blocks, paths, links and titles.
"""
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

from run_readme import NOTE, documents

BLOCK = re.compile(r"^([ ]*)```(\w*)[^\n]*\n(.*?)^\1```[ ]*$", re.MULTILINE | re.DOTALL)
TICKS = re.compile(r"`([^`\s]+)`")
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
ADDRESS = re.compile(r"https?://([\w.-]+)(/[^\s)>`\"\]]*)?")
COMMIT = re.compile(r"/(?:tree|blob)/(\w+)")
ELSEWHERE = {"keepachangelog.com", "pre-commit.com", "semver.org", "think-async.com", "ui.perfetto.dev"} | {
    "github.com/" + name for name in ("MoonshotAI/checkpoint-engine", "NovaSky-AI/SkyRL", "PaddlePaddle/FastDeploy",
                                      "verl-project/verl", "vllm-project/vllm")}
# What somebody types, in a block that is not marked as such.
TYPED = re.compile(r"^(?:\$ .*|(?:\S*/)?ropeway (?:send|receive|inspect|watch|verify|doctor|bench)(?: .*)?)$", re.MULTILINE)
REFERENCE = re.compile(r"\]\[([\w-]+)\]")
HEADING = re.compile(r"^#{1,6} +(.*?)[ #]*$", re.MULTILINE)
PLACES = ("include", "src", "tests", "samples", "benchmarks", "docs", "scripts", "packaging", "python", ".ci")
PATH = re.compile(r"^(?:%s)/[\w./*{},+-]*$" % "|".join(map(re.escape, PLACES)))
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z0-9-]*")
# Options of other people's programs.
FOREIGN = {"--args", "--custom-weight-loader", "--gpus", "--ipc", "--libs", "--reconfigure"}
# Names in other people's code.
FOREIGN_NAMES = {"bt", "check_model_weights_status", "epoll_wait", "frame_ptr", "packed_ipc_producer"}
MESON = {"buildtype", "debug", "optimization", "werror", "cpp_args", "cpp_std", "default_library", "prefix", "libdir"}
DEFINE = re.compile(r"(?<![\w-])-D([a-z]\w*)(?:=([\w|]+))?")
NAME = re.compile(r"(?<![\w./:-])[a-z]+(?:_[a-z0-9]+)+(?![\w./-])")
WORD = re.compile(r"^([a-z][a-z0-9]*)(?:\(\))?$")  # which is all that stands in the backticks
MEMBER = re.compile(r"(?<![\w:])(?:ropeway::)?([a-z]\w*)::(\w+)")
REQUEST = re.compile(r"\b(GET|POST|PUT|DELETE) (/\w*)")
# What comes before a program's name: an assignment, or a program that runs it.
CALL = re.compile(r"(?:\w+=\S*\s+|(?:sudo|time|nice(?:\s+-n\s+-?\d+)?|python3?\s+-m)\s+)*(?:\S*/)?ropeway(?:\s+(.*))?$",
                  re.DOTALL)
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


def subcommands(root):
    """The options of each, from the functions of main.cpp that add them."""
    text = (root / "src/cli/main.cpp").read_text(encoding="utf-8")
    bodies = dict(re.findall(r"^void (add_\w+)\([^)]*\) \{\n(.*?)^\}", text, re.MULTILINE | re.DOTALL))
    found = {}
    for body in bodies.values():
        for name in re.findall(r'add_subcommand\("(\w+)"', body):
            calls = [bodies[one] for one in re.findall(r"^\s*(add_\w+)\(", body, re.MULTILINE) if one in bodies]
            found[name] = {option for words in re.findall(r'"(--[^"]*)"', "".join([body, *calls]))
                           for option in OPTION.findall(words.replace("!", " "))} | {"--help"}
    return found


def call_error(commands, words):
    """What is wrong with `send --check`, as it stands after the program's name."""
    first = words.split()[0] if words.split() else ""
    if first in ("", "--help", "--version"):
        return ""
    if first not in commands:
        return f"there is no `ropeway {first}`"
    lost = [option for option in OPTION.findall(words) if option not in commands[first]]
    return f"`ropeway {first}` has no {', '.join(lost)}" if lost else ""


def commands_of(block):
    """The commands of a block, roughly: what is quoted counts for nothing."""
    text = re.sub(r"'[^'\n]*'|\"[^\"\n]*\"", "''", block.replace("\\\n", " "))
    text = re.sub(r"(^|\s)#.*", "", text, flags=re.MULTILINE)
    return [one.strip() for one in re.split(r"[\n|&;()]+", text) if one.strip()]


def meson_options(root):
    """The values that each may have; none for a free one."""
    values = {"feature": {"auto", "enabled", "disabled"}, "boolean": {"true", "false"}}
    text = (root / "meson_options.txt").read_text(encoding="utf-8")
    return {name: values.get(kind) for name, kind in re.findall(r"^option\('(\w+)', type: '(\w+)'", text, re.MULTILINE)}


def define_errors(options, text):
    for name, value in DEFINE.findall(text):
        if name not in options and name not in MESON and not name.startswith("b_"):
            yield f"meson has no option {name}"
        elif value and options.get(name) and not set(value.split("|")) <= options[name]:
            yield f"-D{name} can't be {value}"


def address_errors(text):
    """Of those that lead elsewhere."""
    commits = {}
    for host, path in sorted(set(ADDRESS.findall(text))):
        if host in ("localhost", "127.0.0.1"):
            continue
        parts = path.strip("/").split("/")
        place = host if host != "github.com" else "/".join([host, *parts[:2]])
        if place not in ELSEWHERE:
            yield f"nobody has looked at {place} (ELSEWHERE in scripts/check_docs.py)"
        commits.setdefault(place, set()).update(COMMIT.findall(path))
    for place, named in commits.items():
        if len(named) > 1 or any(not re.fullmatch(r"[0-9a-f]{40}", one) for one in named):
            yield f"links to {place} are not all of one commit: {', '.join(sorted(named))}"


def endpoints(root):
    text = (root / "samples/inference_server/server.cpp").read_text(encoding="utf-8")
    return set(re.findall(r'\{"([A-Z]+)", "(/\w+)"', text))


def requests(quoted, commands):
    """(method, path) of what pages ask the server for; no method where only the path stands."""
    found = {request for words in quoted for request in REQUEST.findall(words)}
    for command in commands:
        if command.startswith("curl "):
            method = re.search(r"(?:-X|--request) *([A-Z]+)", command)
            posts = re.search(r"\s(?:-d|--data\S*)\s", command)
            for path in re.findall(r"(?:localhost|127\.0\.0\.1):\d+(/\w*)", command):
                found.add((method.group(1) if method else "POST" if posts else "GET", path))
    if found:
        found |= {("", path) for words in quoted for path in re.findall(r"^(/\w+)(?:\?.*)?$", words)}
    return found


def members(root):
    """The names in each class and enum of the public headers; those of its bases are its own."""
    found, bases = {}, {}
    for path in (root / "include").rglob("*.hpp"):
        text = re.sub(r"//.*|\"[^\"\n]*\"", "", path.read_text(encoding="utf-8"))
        for one in re.finditer(r"\b(?:class|struct|enum class)(?: ROPEWAY_\w+)? (\w+)(?=[ <])[^;{}()=]*\{", text):
            depth, end = 1, one.end()
            while depth and end < len(text):
                depth += {"{": 1, "}": -1}.get(text[end], 0)
                end += 1
            found.setdefault(one.group(1), set()).update(re.findall(r"\w+", text[one.end():end]))
            bases.setdefault(one.group(1), set()).update(re.findall(r"\w+", one.group(0).partition(" : ")[2]))
    return {name: names.union(*(found.get(base, set()) for base in bases[name])) for name, names in found.items()}


def known_names(root):
    known = set(FOREIGN_NAMES)
    for top in ("include", "src", "samples", "tests", "benchmarks", "python", "scripts", "packaging"):
        for path in (root / top).rglob("*"):
            if path.suffix in (".cpp", ".hpp", ".h", ".cu", ".py", ".sh", ".build", ".json") and path.name != "check_docs.py":
                known |= set(re.findall(r"[a-z]\w*", path.read_text(encoding="utf-8")))
    return known


def anchors(text):
    """What GitHub makes of a page's headings."""
    found, seen = set(), {}
    for title in HEADING.findall(BLOCK.sub("", text)):
        title = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title)
        slug = re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")
        found.add(f"{slug}-{seen[slug]}" if slug in seen else slug)
        seen[slug] = seen.get(slug, 0) + 1
    return found


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
    passed, complaints, guides = 0, [], []

    def verdict(good, words):
        nonlocal passed
        if good:
            passed += 1
        else:
            complaints.append(words)

    options, subcommand_options, build_options = known_options(root), subcommands(root), meson_options(root)
    served, classes, names = endpoints(root), members(root), known_names(root)
    for place in ("packaging/ropeway.1", "packaging/ropeway.bash"):
        text = (root / place).read_text(encoding="utf-8").replace("\\-", "-")
        for option in sorted(program_options(root)):
            verdict(re.search(re.escape(option) + r"(?![\w-])", text), f"{place}: {option} is missing")
    codes, explained = error_codes(root)
    for code in sorted(codes | explained):
        verdict(code in explained, f"docs/troubleshooting.md: errc::{code} is not explained")
        verdict(code in codes, f"docs/troubleshooting.md: there is no errc::{code}")

    for document in documents(root):
        text = document.read_text(encoding="utf-8")
        name = document.relative_to(root)
        for block in BLOCK.finditer(text):
            where = f"{name}:{text.count(chr(10), 0, block.start()) + 1}"
            above = text[:block.start()].rstrip().rsplit("\n", 1)[-1]
            if block.group(2) in ("bash", "shell", "console"):
                verdict(False, f"{where}: nobody runs a block of {block.group(2)}: mark it sh")
            if not block.group(2):
                typed = TYPED.search(block.group(3))
                verdict(not typed, f"{where}: commands stand in a block of sh: {typed and typed.group()}")
            if block.group(2) == "sh":
                verdict(not block.group(1), f"{where}: nobody runs a block that is indented")
                verdict(not above.startswith("<!--") or NOTE.match(above),
                        f"{where}: not a note of scripts/run_readme.py: {above}")
                error = shell_error(root, block.group(3))
                verdict(not error, f"{where}: {error}")
            if block.group(2) not in ("cpp", "c++", "C++"):
                continue
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
        typed = [command for block in commands for command in commands_of(block)]
        for words in typed + quoted:
            call = CALL.match(words)
            begins = words.split()[:1]
            if call or (begins and begins[0] in subcommand_options and OPTION.search(words)):
                error = call_error(subcommand_options, call.group(1) or "" if call else words)
                verdict(not error, f"{name}: {error}")
            for error in define_errors(build_options, words):
                verdict(False, f"{name}: {error}")
        for code in sorted(set(re.findall(r"\berrc::(\w+)", text))):
            verdict(code in codes | {"ok"}, f"{name}: there is no errc::{code}")
        for scope, member in sorted({found for words in quoted for found in MEMBER.findall(words)}):
            if scope in classes and scope != "errc":
                verdict(member in classes[scope], f"{name}: there is no {scope}::{member}")
        # A changelog names what is no more.
        current = quoted if name.name != "CHANGELOG.md" else []
        for word in sorted({found for words in current for found in NAME.findall(words) + WORD.findall(words)}):
            verdict(word in names, f"{name}: nothing is called {word}")
        for method, path in sorted(requests(quoted, typed)):
            verdict(any(path == one and method in ("", how) for how, one in served),
                    f"{name}: the server has no {method} {path}".replace("  ", " "))
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
            if re.match(r"[a-z]+:", target):
                continue
            file, _, anchor = target.partition("#")
            page = document.parent / file if file else document
            good = page.exists()
            if good and anchor and page.suffix == ".md":
                good = anchor in anchors(page.read_text(encoding="utf-8"))
            verdict(good, f"{name}: a link leads nowhere: {target}")
        for error in address_errors(text):
            verdict(False, f"{name}: {error}")
        for label in sorted(set(REFERENCE.findall(re.sub(r"`[^`]+`", "``", prose)))):
            verdict(f"\n[{label}]: " in prose, f"{name}: a link leads nowhere: [{label}]")
    error = guide_error(command, guides) if command and guides else ""
    verdict(not error, f"the guides' blocks do not compile: {error}")
    passed += len(guides) - 1 if guides and not error else 0
    return passed, complaints


# The option is spelt so that nobody has it.
PLANTED = """# Planted

Words at [a heading](#planted), [none](#plantd), [another page](routes.md#no-such-heading) and [no page](rutes.md);
[`a[i][j]`][undefined]. An `-\x2donse`, and `scripts/no_such.py`. What `ropeway recieve` says, and
`ropeway bench --receivers 4G`; `send --interval 1`.
`-Dcudda=auto`, and `-Dcuda=on`. This is errc::group_incomplet; `receiver_options::idle_mapping_limt`, `send_weihgts`, `anounce`.
`GET /healthz`, `POST /slepp`, `GET /sleep` and `/is_slepping`.
At https://ui.perfeto.dev, or [there](https://github.com/verl-project/verll), <https://semver.org/>;
[one](https://github.com/verl-project/verl/blob/1542807ba97ab829b47faa5928fd02fa4ca442f3/a.py),
[two](https://github.com/verl-project/verl/blob/1542807ba97ab829b47faa5928fd02fa4ca442f4/a.py).

<!-- not run -->
```sh
true
```

- In a list:

  ```sh
  true
  ```

```bash
true
```

```
$ ropeway doctor
```

```sh
scripts/nothing.sh
build/src/cli/ropeway watch --socket s \\
  --trace 64M &
curl -s localhost:8311/serch -d '{}'
meson setup build -Dsampels=false
```

```cpp
stands_nowhere();
```

| what | proved by |
|---|---|
| nothing | `tests/cli/parts_test.cpp`: "no such title" |
"""
PLANTED_COMPLAINTS = """#plantd; routes.md#no-such-heading; rutes.md; [undefined]; -\x2donse; scripts/no_such.py; ropeway recieve;
--receivers; --interval; option cudda; can't be on; errc::group_incomplet; idle_mapping_limt; send_weihgts; anounce;
POST /slepp; GET /sleep; no /is_slepping; scripts/nothing.sh; has no --trace; POST /serch; option sampels; stands_nowhere; no such title;
ui.perfeto.dev; verl-project/verll; not all of one commit; not a note; indented; a block of bash; $ ropeway doctor"""


def self_test():
    root = pathlib.Path(__file__).resolve().parent.parent
    with tempfile.TemporaryDirectory() as folder:
        copy = pathlib.Path(folder)
        for top in (*PLACES, "meson_options.txt"):
            (copy / top).symlink_to(root / top)
        (copy / "docs").unlink()
        shutil.copytree(root / "docs", copy / "docs")
        (copy / "docs/planted.md").write_text(PLANTED, encoding="utf-8")
        complaints = [one for one in check(copy, [])[1] if one.startswith("docs/planted.md")]
    passed, failed = 0, 0
    for words in PLANTED_COMPLAINTS.replace("\n", " ").split(";"):
        about = [one for one in complaints if one.endswith(words.strip()) or words.strip() in one]
        complaints = [one for one in complaints if one not in about[:1]]
        passed += len(about) > 0
        failed += not about
        print(*([] if about else [f"self-test: no complaint about {words.strip()}\n"]), sep="", end="")
    for complaint in complaints:
        print(f"self-test: one too many: {complaint}")
    failed += len(complaints)
    print(f"{passed} passed, {failed} failed")
    return 1 if failed else 0


def main(arguments):
    if arguments == ["--self-test"]:
        return self_test()
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
