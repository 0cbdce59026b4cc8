#!/usr/bin/env python3
"""A trainer with torch: changes a transformers model's weights, sends each version, and compares logits with the server.

    samples/python/torch_trainer.py [--socket PATH] [--model FOLDER] [--device cuda:0] [--versions N]

samples/python/transformers_server.py is the other side: it answers with the logits of the version that it holds, which
must be the trainer's own, bit by bit. Without --model, a small model with random weights is made.
"""
import argparse
import os
import pathlib
import time

import torch

import ropeway
from transformers_server import answer_file, make_model, tokens


def compare(model, path, version, limit=60):
    """Waits for the server's logits of this version; raises if they differ."""
    answers = answer_file(path)
    until = time.monotonic() + limit
    while True:
        try:
            answered, theirs = torch.load(answers, weights_only=True)
            if answered == version:
                break
        except FileNotFoundError:
            pass
        if time.monotonic() > until:
            raise TimeoutError(f"the server answered nothing for version {version}")
        time.sleep(0.005)
    with torch.no_grad():
        ours = model(tokens(model)).logits.float().cpu()
    if not torch.equal(ours, theirs):
        raise SystemExit(f"version {version}: logits differ by up to {(ours - theirs).abs().max():g}")


def train(options):
    model = make_model(options.model, options.device, seed=1)
    with ropeway.Sender(options.socket) as sender:
        sender.wait_for_receivers(1, limit=300).wait()
        weights = sender.prepare(model)
        for version in range(1, options.versions + 1):
            with torch.no_grad():  # a training step
                for parameter in model.parameters():
                    parameter.mul_(1 + 0.01 * version)
            began = time.perf_counter()
            report = sender.send_weights(version, weights).wait()
            took = time.perf_counter() - began
            print(f"version {version}: {report.bytes / 1e6:.1f} MB in {took * 1e3:.2f} ms, "
                  f"{report.receivers[0].route}", flush=True)
            compare(model, options.socket, version)
            print(f"version {version}: the same logits on both sides", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--socket", default=f"/tmp/ropeway-{os.getuid()}/weights.sock")
    parser.add_argument("--model", type=pathlib.Path)
    parser.add_argument("--device", default="cuda:0" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--versions", type=int, default=3)
    train(parser.parse_args())
