#!/usr/bin/env python3
"""A trainer with numpy alone: fits a small network, and sends its weights after every few steps.

    samples/python/trainer.py [--socket PATH] [--versions N] [--servers N]

samples/python/server.py is the other side; start them in either order.
"""
import argparse
import asyncio
import os

import numpy as np

import ropeway


def model(seed=0):
    random = np.random.default_rng(seed)
    return {"hidden.weight": random.standard_normal((32, 1), np.float32), "hidden.bias": np.zeros(32, np.float32),
            "out.weight": random.standard_normal((1, 32), np.float32) / 8, "out.bias": np.zeros(1, np.float32)}


def step(weights, x, wanted, rate=0.05):
    """One step of gradient descent; gives the loss."""
    hidden = np.tanh(x @ weights["hidden.weight"].T + weights["hidden.bias"])
    error = hidden @ weights["out.weight"].T + weights["out.bias"] - wanted
    back = (error @ weights["out.weight"]) * (1 - hidden**2) / len(x)
    weights["out.weight"] -= rate * error.T @ hidden / len(x)
    weights["out.bias"] -= rate * error.mean(0)
    weights["hidden.weight"] -= rate * back.T @ x
    weights["hidden.bias"] -= rate * back.sum(0)
    return float((error**2).mean())


async def train(path, versions, servers):
    weights = model()
    x = np.linspace(-3, 3, 200, dtype=np.float32)[:, None]
    async with ropeway.Sender(path) as sender:
        await sender.wait_for_receivers(servers, limit=60)
        prepared = sender.prepare(weights)  # the arrays stay where they are
        for version in range(1, versions + 1):
            for _ in range(200):
                loss = step(weights, x, np.sin(x))
            report = await sender.send_weights(version, prepared)
            print(f"version {version}: loss {loss:.4f}, {report.count('committed')} servers hold it", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--socket", default=f"/tmp/ropeway-{os.getuid()}/weights.sock")
    parser.add_argument("--versions", type=int, default=5)
    parser.add_argument("--servers", type=int, default=1)
    options = parser.parse_args()
    asyncio.run(train(options.socket, options.versions, options.servers))
