"""What the processes of the tests do: `python roles.py ROLE ARGUMENT...`. One line of JSON for each thing to tell."""
from __future__ import annotations

import asyncio
import json
import os
import sys
import threading
import time

import numpy as np

import ropeway


def say(**what):
    print(json.dumps(what), flush=True)


def until(condition, limit=30):
    """Looks again and again until it is so."""
    end = time.monotonic() + limit
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


def weights(version, count=4, size=1000):
    return {f"layer.{at}": np.full(size, version * 100 + at, np.float32) for at in range(count)}


def receive(address, count="4", size="1000"):
    """Follows a sender to its goodbye; says what it holds."""
    into = weights(0, int(count), int(size))
    places = ropeway.Destinations(into)
    with ropeway.Receiver(name="server", connect_limit=60) as receiver:  # the sender may be starting
        receiver.connect(address).wait()
        say(connected=True)
        try:
            for update in receiver:
                update.load_into(places).wait()
                whole = all((into[name] == wanted).all() for name, wanted in
                            weights(update.version, int(count), int(size)).items())
                say(version=update.version, whole=bool(whole))
        except ropeway.TransferError as error:
            say(error=error.code, torn=places.torn)


def receive_asyncio(address):
    async def main():
        into = weights(0)
        async with ropeway.Receiver(name="server") as receiver:
            await receiver.connect(address)
            say(connected=True)
            async for update in receiver:
                await update.load_into(into)
                say(version=update.version, whole=bool((into["layer.3"] == update.version * 100 + 3).all()))

    asyncio.run(main())


def load_slowly(address):
    """Takes one bucket and never comes back."""
    receiver = ropeway.Receiver(name="slow")
    receiver.connect(address).wait()
    say(connected=True)
    update = receiver.next_update().wait()
    bucket = update.next_bucket().wait()
    say(bucket=bucket.number)
    time.sleep(3600)


def send(address, versions="3"):
    with ropeway.Sender(address) as sender:
        sender.wait_for_receivers(1).wait()
        for version in range(1, int(versions) + 1):
            report = sender.send_weights(version, weights(version)).wait()
            say(version=version, committed=report.count("committed"))


def send_and_hang(address, count="4", size="1000"):
    """Stops in the middle of a version: its iterator gives one tensor and then nothing any more."""
    def tensors():
        yield from list(weights(1, int(count), int(size)).items())[:1]
        say(stuck=True)
        time.sleep(3600)

    sender = ropeway.Sender(address, bucket_bytes=4096)
    sender.wait_for_receivers(1).wait()
    stated = [(name, "F32", (int(size),)) for name in weights(1, int(count), int(size))]
    sender.send_weights(1, ropeway.Source(stated, tensors)).wait()


def load_when_told(address):
    """Takes one bucket, and goes on when it is told to; follows the next session to its goodbye then."""
    memory = weights(0)
    places = ropeway.Destinations(memory)
    with ropeway.Receiver(name="slow", connect_limit=60) as receiver:
        receiver.connect(address).wait()
        say(connected=True)
        update = receiver.next_update().wait()
        bucket = update.next_bucket().wait()
        say(bucket=bucket.number)
        sys.stdin.readline()
        bucket.release()
        try:
            while True:
                bucket = update.next_bucket().wait()
                if bucket is None:
                    break
                bucket.release()
            update.commit().wait()
            say(committed=update.version)
        except ropeway.TransferError as error:
            say(error=error.code, version=receiver.version)
        receiver.connect(address).wait()
        for update in receiver:
            update.load_into(places).wait()
            say(version=update.version, whole=bool((memory["layer.3"] == update.version * 100 + 3).all()))


def send_when_told(address):
    """Stops in the middle of a version, and goes on when it is told to; sends another one then."""
    def tensors():
        for at, pair in enumerate(weights(1).items()):
            if at == 1:
                say(stuck=True)
                sys.stdin.readline()
            yield pair

    with ropeway.Sender(address, bucket_bytes=4096) as sender:
        sender.wait_for_receivers(1).wait()
        try:
            sender.send_weights(1, ropeway.Source([(name, "F32", (1000,)) for name in weights(1)], tensors)).wait()
            say(committed=1)
        except ropeway.TransferError as error:
            say(error=error.code, outcomes=[one.outcome for one in error.report.receivers])
        sender.wait_for_receivers(1).wait()
        say(committed=sender.send_weights(2, weights(2)).wait().count("committed"))


def wait_for_updates(address):
    """Blocks until it is interrupted, and says how that went."""
    receiver = ropeway.Receiver(name="server")
    receiver.connect(address).wait()
    say(connected=True)
    try:
        receiver.next_update().wait()
    except KeyboardInterrupt:
        say(interrupted=True)
    # It can go on.
    update = receiver.next_update().wait()
    into = weights(0)
    update.load_into(into).wait()
    say(version=update.version, whole=bool((into["layer.3"] == update.version * 100 + 3).all()))
    receiver.close().wait()


def wait_for_updates_asyncio(address):
    async def main():
        receiver = ropeway.Receiver(name="server")
        await receiver.connect(address)
        say(connected=True)
        try:
            await receiver.next_update()
        finally:
            say(status=receiver.status().phase)
            await receiver.close()

    try:
        asyncio.run(main())
    except KeyboardInterrupt:
        say(interrupted=True)


def sharded(version, shapes):
    """What rank N holds a part of: every element another value."""
    return {name: np.arange(np.prod(shape), dtype=np.float32).reshape(shape) + 1000 * version + 100 * at
            for at, (name, shape) in enumerate(shapes.items())}


def rank(address, meeting, number, ranks, how):
    """One rank of a trainer with FSDP, of which rank 0 sends; something goes wrong with version 2."""
    import datetime
    import signal

    import torch
    from torch import distributed
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import Shard, distribute_tensor

    number, ranks, version = int(number), int(ranks), 0
    # The group's limit begins when all have imported torch, which takes one longer than the other.
    there = distributed.FileStore(meeting + ".there", ranks)
    there.set(str(number), "1")
    there.wait([str(one) for one in range(ranks)], datetime.timedelta(seconds=100))
    distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=number, world_size=ranks,
                                   timeout=datetime.timedelta(seconds=20 if how != "raises" else 8))
    mesh = DeviceMesh.from_group(distributed.group.WORLD, "cpu")  # with its limit: init_device_mesh may make a new one
    model = torch.nn.Sequential(torch.nn.Linear(7, 5), torch.nn.Linear(5, 4))
    for part in (*model, model):
        fully_shard(part, mesh=mesh)
    tensors = dict(model.state_dict(), empty=distribute_tensor(torch.zeros(0, 3), mesh, [Shard(0)]))
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}

    def gather(name, tensor):
        here = version == 2 and name == "1.weight"
        if here and (how, number) in (("dies", 1), ("sender dies", 0)):
            os.kill(os.getpid(), signal.SIGKILL)
        if here and how == "raises" and number == 1:
            raise MemoryError("no room for it")
        whole = tensor.full_tensor()
        return whole[:1] if here and how == "wrong" and number == 0 else whole

    def send():
        sender.wait_for_receivers(0 if version == 2 and how == "nobody" else 1).wait()
        sending = sender.send_weights(version, source)
        if version == 2 and how == "given up":
            sys.stdin.readline()  # the server has it
            return sending.wait(0.01)
        return sending.wait()

    if number == 0:
        say(shapes=shapes)
        sender = ropeway.Sender(address, silence_limit=5)
    for version in (1, 2, 3):
        for name, whole in sharded(version, shapes).items():
            part = distribute_tensor(torch.from_numpy(whole), mesh, tensors[name].placements)
            with torch.no_grad():
                tensors[name].to_local().copy_(part.to_local())
        group = distributed.group.WORLD if how == "wrong" else None  # or that of the mesh
        source = ropeway.gathered(tensors, None if how == "right" else gather, group=group)
        if number == 0 and version == 2 and how == "nobody":
            while sender.receivers().wait():
                pass
        try:
            if number == 0:
                say(committed=send().count("committed"))
            else:
                for _ in source.iterate():
                    pass
                say(took_part=version)
        except Exception as error:
            say(error=type(error).__name__, code=getattr(error, "code", None), text=str(error),
                cause=type(error.__cause__).__name__)
            if how in ("dies", "sender dies", "raises"):
                sys.stdin.readline()  # with all its connections
                os._exit(0)
    if number == 0:
        sender.close().wait()
    distributed.destroy_process_group()


def never_close(address):
    """Ends without closing anything, with an operation running."""
    global sender, receiver, running
    sender = ropeway.Sender(address)
    receiver = ropeway.Receiver()
    receiver.connect(address).wait()
    running = receiver.next_update()
    say(connected=True)


def end_in_the_interpreters_end(address):
    """Leaves two operations to the end of the interpreter; only they have the mailbox, and what is sent, any more."""
    global ended_late
    sender, receiver = ropeway.Sender(address), ropeway.Receiver()
    for one in (sender, receiver):
        ropeway._sender._open.discard(one)  # or they would be closed before
    receiver.connect(address).wait()
    sending = sender.send_weights(1, sender.prepare(weights(1)))
    update = receiver.next_update().wait()  # it is never loaded
    waiting = receiver.next_update()
    for one in (sending, waiting):
        assert one._core.tell(ropeway._core.Mailbox())
    ended_late = sending._core, waiting._core, update, sender, receiver
    say(connected=True)


def end_under_a_daemon(address):
    """Ends while a daemon thread waits, which then wants to go on."""
    sender = ropeway.Sender(address)

    def serve():
        while True:
            receiver = ropeway.Receiver()
            receiver.connect(address).wait()
            receiver.close().wait()

    threading.Thread(target=serve, daemon=True).start()
    sender.wait_for_receivers(1).wait()
    say(connected=True)


def beside_another_interpreter(address):
    """In a process with two interpreters Python says of every thread that it has the GIL."""
    try:
        import _xxsubinterpreters as interpreters
    except ImportError:
        try:
            import _interpreters as interpreters
        except ImportError:
            return say(skipped=True)
    interpreters.create()
    with ropeway.Sender(address) as sender, ropeway.Receiver() as receiver:
        receiver.connect(address).wait()
        into = weights(0)
        for version in range(1, 10):
            sender.send_weights(version, weights(version))  # what it keeps goes on the library's thread
            receiver.next_update().wait().load_into(into).wait()
            while True:
                try:
                    sender.release_memory().wait()
                    break
                except ropeway.TransferError as error:
                    assert error.code == "busy", error  # the send has not quite ended
        held = sender.hold(99, weights(99))
        del held
    say(done=True)


def without_descriptors(address):
    """Whoever can't wait has nothing running any more when he is told."""
    import resource

    async def wait(what):
        await what

    with ropeway.Sender(address) as sender, ropeway.Receiver() as receiver:
        receiver.connect(address).wait()
        blocking, waiting = receiver.next_update(), sender.wait_for_receivers(2, 0.2)
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (200, hard))
        taken, codes, done = [], [], False
        for attempt in range(10):  # the library may yet close one of its own
            for fd in taken[:6]:  # a loop needs some, and one that has been waited on needs none any more
                os.close(fd)
            del taken[:6]
            loop = asyncio.new_event_loop()
            try:
                while True:
                    taken.append(os.open("/dev/null", os.O_RDONLY))
            except OSError:
                pass
            for waits in ((lambda: blocking.wait(0.2)), (lambda: loop.run_until_complete(wait(waiting)))):
                try:
                    waits()
                except (ropeway.TransferError, TimeoutError) as error:
                    codes.append(getattr(error, "code", None))
            done = codes[-2:] == ["EMFILE", "EMFILE"] and blocking.done() and waiting.done()
            if done:
                break
            loop.close()
            blocking.cancel()
            blocking, waiting = receiver.next_update(), sender.wait_for_receivers(2, 0.2)
        for one in taken:
            os.close(one)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        loop.close()
    say(done=done, codes=codes)


def interrupted_twice(address):
    """One SIGINT right after the other: nothing runs any more when the first is raised."""
    import ctypes
    import mmap
    import signal

    rounds = 200
    sent = mmap.mmap(-1, 1)  # for how many rounds the signals were sent
    ready, say_ready = os.pipe()
    parent = os.getpid()
    interrupt = ctypes.CDLL(None).tgkill  # its main thread: another one (numpy has some) may take its time to hear it
    helper = os.fork()
    if helper == 0:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        os.close(say_ready)
        for at in range(rounds):
            if not os.read(ready, 1):
                os._exit(1)
            until(lambda: asleep(parent))  # between telling so and waiting it only runs
            interrupt(parent, parent, signal.SIGINT)
            end = time.perf_counter() + at * 1e-6
            while time.perf_counter() < end:
                pass
            interrupt(parent, parent, signal.SIGINT)
            sent[0] = at + 1
        os._exit(0)
    running = 0
    with ropeway.Sender(address), ropeway.Receiver() as receiver:
        receiver.connect(address).wait()
        for at in range(rounds):
            waiting = receiver.next_update()
            try:
                try:
                    os.write(say_ready, b".")
                    waiting.wait(10)
                except KeyboardInterrupt:
                    until(lambda: sent[0] > at)
                    time.sleep(0.001)  # a call: the second one is raised now, if it was not merged with the first
            except KeyboardInterrupt:
                pass
            running += not waiting.done()  # it would run for ever, since nothing is sent
            waiting._core.give_up()
    say(done=running == 0 and os.waitpid(helper, 0)[1] == 0, running=running)


def asleep(process):
    """Whether its main thread waits for something. Any process may ask."""
    with open(f"/proc/{process}/task/{process}/stat") as file:
        return file.read().rpartition(")")[2].split()[0] == "S"


def in_poll(process):
    """Whether its main thread sleeps in poll, as one does that waits for an operation. Asked of oneself or of a child:
    others may not look at that everywhere."""
    with open(f"/proc/{process}/syscall") as file:
        return file.read().split()[0] == "7"


def others_sleep():
    """Whether all other threads of this process sleep at one time: none has run between two looks at each."""
    def look():
        found = {}
        for thread in set(os.listdir("/proc/self/task")) - {str(threading.get_native_id())}:
            with open(f"/proc/self/task/{thread}/status") as file:
                words = dict(line.split(":", 1) for line in file)
            switches = words["voluntary_ctxt_switches"], words["nonvoluntary_ctxt_switches"]
            found[thread] = words["State"].split()[0], switches
        return found

    before = look()
    return before == look() and all(state == "S" for state, _ in before.values())


def fail_under_the_end(address):
    """A daemon thread whose operations fail without end, while the interpreter ends."""
    receiver = ropeway.Receiver()
    failing = threading.Event()

    def fail():
        while True:
            try:
                receiver.next_update().wait()
            except ropeway.TransferError:
                failing.set()

    threading.Thread(target=fail, daemon=True).start()
    failing.wait()
    say(done=True)


def fork(address):
    """Forks while a receiver waits; the child must neither hang nor disturb it."""
    sender = ropeway.Sender(address)
    receiver = ropeway.Receiver()
    receiver.connect(address).wait()
    into = weights(0)
    update = receiver.next_update()
    # AddressSanitizer's allocator has locks that the child finds as they are: no other thread may have one.
    until(others_sleep)
    child = os.fork()
    if child == 0:
        try:
            sender.send_weights(1, weights(1))
        except ropeway.TransferError as error:
            say(child=error.code)
        del sender, receiver, update
        sys.exit(0)  # with all destructors
    _, status = os.waitpid(child, 0)
    say(status=status)
    sending = sender.send_weights(1, weights(1))
    update.wait().load_into(into).wait()
    say(committed=sending.wait().count("committed"))
    sender.close().wait()
    receiver.close().wait()


def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def state():
    """What must not grow."""
    with open("/proc/self/maps") as file:
        maps = len(file.readlines())
    return {"resident": resident(), "descriptors": len(os.listdir("/proc/self/fd")),
            "threads": len(os.listdir("/proc/self/task")), "maps": maps}


def state_once_settled(before=None):
    """The same, once there are no more descriptors and threads than before: a thread that was joined may stand in /proc
    for a moment yet. After 20 s, whatever is there."""
    end = time.monotonic() + 20
    while True:
        now = state()
        grown = before is not None and any(now[what] > before[what] for what in ("descriptors", "threads"))
        if not grown or time.monotonic() > end:
            return now
        time.sleep(0.01)


def soak_receive(address, way, versions):
    async def main():
        into, found = weights(0, 8, 20000), []
        places = ropeway.Destinations(into)

        def load(tensors):
            for name, tensor in tensors:
                into[name][...] = tensor

        async with ropeway.Receiver(name="server") as receiver:
            await receiver.connect(address)
            say(connected=True)
            async for update in receiver:
                if way == "into":
                    await update.load_into(places)
                else:
                    await update.load_with(load, tensors="numpy")
                assert (into["layer.7"] == update.version * 100 + 7).all()
                if update.version in (int(versions) // 4, int(versions)):
                    found.append(state_once_settled(*found))
                    say(**found[-1])

    asyncio.run(main())


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
