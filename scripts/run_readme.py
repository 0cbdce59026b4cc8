#!/usr/bin/env python3
"""Does what a page tells its reader to type: every ```sh block, by bash, in the order of the page, in a copy of what git has.

    scripts/run_readme.py [PAGE...]        default: every page that has such a block, README.md first, which builds

What a reader sees from the words around a block, a comment just above it says here:

    <!-- run: until WORDS -->    it stays in its terminal: the next block's turn comes once its output has these words, and it
                                 is ended with the page
    <!-- run: side by side -->   each line in a terminal of its own; all must end well
    <!-- run: prints WORDS -->   its output has these words
    <!-- run: falls WORDS -->    its output has numbers after these words, each less than the one before
    <!-- not run: REASON -->     it is left out: it needs a GPU, say, or hours

Variables that a block sets hold in those after it. What the compiler warns about is a failure: it is the first thing that a
newcomer sees. `ropeway` alone is what README.md has built, ~ a folder of the run's own (with the real ~/.cache), and
build-test-plain and build-test-asan are those of this tree, if it has them. One line a block; the last line is
`N passed, N failed[, N skipped]`. Skipped is what needs one of these folders where it is not, and where the model can't be
fetched, what needs that.
"""
import fcntl
import os
import pathlib
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
BLOCK = re.compile(r"^```sh\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NOTE = re.compile(r"<!-- (run: (?:until|prints|falls) .+|run: side by side|not run: .+) -->$")
LIMIT = 1800  # seconds for one block: the first ones build
FIRST = ["README.md", "docs/serving.md"]  # they need the model, and make the rest's `ropeway`
OURS = ["build-test-plain", "build-test-asan"]  # of .ci/run's stages before this one


def documents(root):
    """All pages, by path."""
    found = sorted(root.glob("*.md")) + sorted(root.glob("python/*.md"))
    for top in ("docs", "samples", "benchmarks", "tests"):
        found += sorted((root / top).rglob("*.md"))
    return found


def pages(root):
    """The names of those with something to run, in the order in which that works."""
    names = [str(page.relative_to(root)) for page in documents(root)
             if any(not note.startswith("not run: ") for _, note, _ in blocks(page))]
    return sorted(names, key=lambda name: (name not in FIRST, FIRST.index(name) if name in FIRST else 0, name))


class Terminal:
    """A shell that runs something, in a process group of its own, and what it has printed so far."""

    def __init__(self, words, folder):
        self.said = ""
        home = folder.parent / "home"
        here = {**os.environ, "HOME": str(home), "PATH": f"{folder}/build/src/cli:{os.environ['PATH']}"}
        self.process = subprocess.Popen(["bash", "-eo", "pipefail", "-c", words], cwd=folder, text=True, errors="replace", env=here,
                                        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                        start_new_session=True)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self):
        for line in self.process.stdout:
            self.said += line

    def until(self, words, limit):
        """Whether its output has the words before it ends, or the limit does."""
        end = time.monotonic() + limit
        while words not in self.said and time.monotonic() < end and self.process.poll() is None:
            time.sleep(0.05)
        if self.process.poll() is not None:
            self._reader.join(10)
        return words in self.said

    def status(self, limit):
        try:
            status = self.process.wait(limit)
        except subprocess.TimeoutExpired:
            self.end()
            return f"still running after {limit} s"
        self._reader.join(10)
        return status

    def end(self):
        try:
            os.killpg(self.process.pid, signal.SIGTERM)
            self.process.wait(20)
        except ProcessLookupError:
            pass
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


def blocks(page):
    """(line, what the comment above says, the block) for each."""
    text = page.read_text(encoding="utf-8")
    for found in BLOCK.finditer(text):
        above = text[:found.start()].rstrip().rsplit("\n", 1)[-1]
        note = NOTE.match(above)
        yield text.count("\n", 0, found.start()) + 1, note.group(1) if note else "", found.group(1)


def lacking(folder, name, block, model):
    """What is not there, of all that a block needs and no block makes."""
    for program in re.findall(rf"(?:{'|'.join(OURS)})/[\w./-]+", block):
        if not (folder / program).exists():
            return f"there is no {program}"
    with_model = name in FIRST or "model" in block
    return "the model can't be fetched" if with_model and "setup.sh" not in block and not model else ""


def falls(words, said):
    numbers = [float(number) for number in re.findall(re.escape(words) + r"\s+(-?[\d.]+(?:e-?\d+)?)", said)]
    return len(numbers) > 1 and all(after < before for before, after in zip(numbers, numbers[1:]))


class Reader:
    """Somebody who types what a page says."""

    def __init__(self, folder):
        self.folder, self.variables, self.open = folder, [], []

    def type(self, note, block):
        """What went wrong, or nothing."""
        words = "\n".join(self.variables) + "\n" + block
        self.variables += [line for line in block.splitlines() if re.match(r"\w+=\S*$", line)]
        if note.startswith("run: until "):
            terminal = Terminal(words, self.folder)
            self.open.append(terminal)
            return "" if terminal.until(note[len("run: until "):], 120) else f"it said:\n{terminal.said}"
        if note == "run: side by side":
            both = [Terminal(line, self.folder) for line in block.splitlines() if line.strip()]
            bad = [f"status {status}:\n{one.said}" for one in both if (status := one.status(120)) != 0]
            return "\n".join(bad)
        terminal = Terminal(words, self.folder)
        if (status := terminal.status(LIMIT)) != 0:
            return f"status {status}:\n{terminal.said[-4000:]}"
        if "warning:" in terminal.said:
            return "\n".join(line for line in terminal.said.splitlines() if "warning:" in line)
        if note.startswith("run: prints ") and note[len("run: prints "):] not in terminal.said:
            return f"it printed:\n{terminal.said[-4000:]}"
        if note.startswith("run: falls ") and not falls(note[len("run: falls "):], terminal.said):
            return f"it does not fall:\n{terminal.said[-4000:]}"
        return ""

    def leave(self):
        for terminal in self.open:
            terminal.end()


def main():
    if any(word.startswith("-") for word in sys.argv[1:]):
        raise SystemExit(__doc__)
    passed = failed = skipped = 0
    cache = pathlib.Path.home() / ".cache"
    cache.mkdir(exist_ok=True)
    alone = open(cache / "ropeway-pages.lock", "w", encoding="utf-8")
    fcntl.flock(alone, fcntl.LOCK_EX)  # the pages name a port and sockets, which two runs can't have at once
    with tempfile.TemporaryDirectory() as folder:
        clone = pathlib.Path(folder) / "ropeway"
        git = lambda *words: subprocess.run(["git", *words], cwd=ROOT, capture_output=True, check=True).stdout  # noqa: E731
        tree = git("archive", git("stash", "create").decode().strip() or "HEAD")  # with what is changed and not committed
        clone.mkdir()
        subprocess.run(["tar", "x"], cwd=clone, input=tree, check=True)
        home = pathlib.Path(folder) / "home"
        home.mkdir()
        (home / ".cache").symlink_to(cache)
        names = sys.argv[1:] or pages(clone)
        for built in OURS + ([] if "README.md" in names else ["build"]):
            if (ROOT / built / "build.ninja").exists():
                (clone / built).symlink_to(ROOT / built)
        model = subprocess.run([clone / "samples/fetch_model.sh"], capture_output=True, text=True)
        if model.returncode == 0:  # the reader's own checkpoint
            (clone / "model.safetensors").symlink_to(model.stdout.splitlines()[0])
        for name in names:
            reader = Reader(clone)
            for line, note, block in blocks(clone / name):
                place = f"{name}:{line}: {shlex.quote(block.splitlines()[0].partition('#')[0].strip())}"
                if note.startswith("not run: "):
                    print(f"left out: {place}: {note[len('not run: '):]}", flush=True)
                    continue
                if lack := lacking(clone, name, block, model.returncode == 0):
                    skipped += 1
                    print(f"SKIPPED: {place}: {lack}", flush=True)
                    continue
                began = time.monotonic()
                wrong = reader.type(note, block)
                print(f"{'FAILED' if wrong else 'ran'}: {place}, {time.monotonic() - began:.1f} s", flush=True)
                if wrong:
                    failed += 1
                    print(wrong, flush=True)
                else:
                    passed += 1
            reader.leave()
    print(f"{passed} passed, {failed} failed" + (f", {skipped} skipped" if skipped else ""))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
