"""What the tests share: addresses, pairs, other processes, and loops."""
from __future__ import annotations

import asyncio
import json
import os
import pathlib
import subprocess
import sys
import threading

import pytest

HERE = pathlib.Path(__file__).parent
sys.path.insert(0, str(HERE))  # for roles.py
LIMIT = 60  # seconds, for what should take none


@pytest.fixture
def address(tmp_path):
    """Where a sender may listen: in a folder of our own, with a short name."""
    folder = tmp_path / "s"
    folder.mkdir(mode=0o700)
    return str(folder / "w.sock")


@pytest.fixture
def pair(address):
    """A sender of small buckets, and a receiver that is connected to it."""
    import ropeway

    with ropeway.Sender(address, bucket_bytes=4096) as sender, ropeway.Receiver(name="server") as receiver:
        receiver.connect(address).wait()
        yield sender, receiver


def _loops():
    yield "asyncio"
    try:
        import uvloop  # noqa: F401
    except ImportError:
        return
    yield "uvloop"


@pytest.fixture(params=_loops())
def run(request):
    """Runs a coroutine to its end, on each kind of loop, with a limit."""
    def runner(coroutine, limit=LIMIT):
        async def limited():
            return await asyncio.wait_for(coroutine, limit)

        if request.param == "uvloop":
            import uvloop

            loop = uvloop.new_event_loop()
        else:
            loop = asyncio.new_event_loop()
        try:
            return loop.run_until_complete(limited())
        finally:
            loop.close()

    return runner


class Peer:
    """Another process, which plays one of the roles in roles.py; it tells how it fares in lines of JSON."""

    def __init__(self, role, *arguments, limit=LIMIT):
        environment = dict(os.environ, PYTHONFAULTHANDLER="1")
        self.process = subprocess.Popen([sys.executable, str(HERE / "roles.py"), role, *map(str, arguments)],
                                        stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True, env=environment)
        self._watch = threading.Timer(limit, self.process.kill)
        self._watch.start()

    def hear(self):
        """What it says next; None at its end."""
        line = self.process.stdout.readline()
        return json.loads(line) if line else None

    def go_on(self):
        """For a role that reads a line before it does."""
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def end(self):
        """Its exit status, once it has ended by itself."""
        return self.process.wait(LIMIT)

    def close(self):
        self._watch.cancel()
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self.process.stdout.close()
        self.process.stdin.close()


@pytest.fixture
def peer():
    """Starts other processes, and ends them with the test."""
    started = []

    def start(role, *arguments, limit=LIMIT):
        started.append(Peer(role, *arguments, limit=limit))
        return started[-1]

    yield start
    for one in started:
        one.close()


@pytest.fixture
def follow():
    """A server on a thread of its own, with the blocking forms: loads every update into its destinations."""
    class Follower:
        def __init__(self, receiver, take):
            self.reports, self.errors = [], []
            self._receiver, self._take = receiver, take
            self.thread = threading.Thread(target=self._follow, daemon=True)
            self.thread.start()

        def _follow(self):
            try:
                for update in self._receiver:
                    try:
                        self.reports.append(self._take(update))
                    except Exception as error:
                        self.errors.append(error)
            except Exception as error:
                self.errors.append(error)

        def join(self):
            self.thread.join(LIMIT)
            assert not self.thread.is_alive()

    return Follower
