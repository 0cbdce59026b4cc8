#!/usr/bin/env python3
"""A server with numpy alone: answers from one whole version while the next arrives.

    samples/python/server.py [--socket PATH]

Ends when the trainer (samples/python/trainer.py) says goodbye.
"""
import argparse
import asyncio
import os

import numpy as np

import ropeway


def room():
    return {"hidden.weight": np.zeros((32, 1), np.float32), "hidden.bias": np.zeros(32, np.float32),
            "out.weight": np.zeros((1, 32), np.float32), "out.bias": np.zeros(1, np.float32)}


def answer(weights, x):
    hidden = np.tanh(weights["hidden.weight"] @ [x] + weights["hidden.bias"])
    return (weights["out.weight"] @ hidden + weights["out.bias"]).item()


async def serve_requests(sets, shadow):
    """Asks itself; each answer comes from the version that its lease names."""
    said = None
    while True:
        with shadow.lease() as lease:
            if lease and lease.version != said:
                said = lease.version
                print(f"version {said}: sin(1) is about {answer(sets[lease.set], 1.0):.3f}", flush=True)
        await asyncio.sleep(0.001)


async def follow(path):
    sets = [room(), room()]
    shadow = ropeway.ShadowDestinations(*map(ropeway.Destinations, sets))
    requests = asyncio.ensure_future(serve_requests(sets, shadow))
    async with ropeway.Receiver(name="server", connect_limit=60) as receiver:
        await receiver.connect(path)
        async for update in receiver:
            try:
                await update.load_into(shadow)
            except ropeway.TransferError as error:
                print(error)  # the set that is served is as it was
    await asyncio.sleep(0.01)
    requests.cancel()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--socket", default=f"/tmp/ropeway-{os.getuid()}/weights.sock")
    asyncio.run(follow(parser.parse_args().socket))
