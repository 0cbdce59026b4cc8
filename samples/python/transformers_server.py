#!/usr/bin/env python3
"""A server with a transformers model, whose weights are replaced in place, under a CUDA graph if it lies on a GPU.

    samples/python/transformers_server.py [--socket PATH] [--model FOLDER] [--device cuda:0]

After each version it writes the logits of one prompt beside the socket, where samples/python/torch_trainer.py compares
them with its own.
"""
import argparse
import os
import pathlib

import torch
import transformers

import ropeway


def make_model(folder, device, seed):
    """The model in a folder, or a small one with random weights."""
    torch.manual_seed(seed)
    if folder:
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, torch_dtype=torch.bfloat16)
    else:
        shape = dict(hidden_size=256, num_hidden_layers=4, num_attention_heads=8, num_key_value_heads=4, vocab_size=1000,
                     intermediate_size=688, max_position_embeddings=128)
        model = transformers.AutoModelForCausalLM.from_config(transformers.LlamaConfig(**shape)).to(torch.bfloat16)
    return model.to(device).eval()


def tokens(model):
    return torch.arange(16, device=model.device)[None] % model.config.vocab_size


def answer_file(path):
    return f"{path}.answers"


def forward_of(model):
    """A function without arguments that gives the logits: a graph's replay, whose addresses don't move, on a GPU."""
    prompt = tokens(model)
    with torch.no_grad():
        if model.device.type != "cuda":
            return lambda: model(prompt, use_cache=False).logits
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                model(prompt, use_cache=False)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            logits = model(prompt, use_cache=False).logits

    def replay(prompt=prompt):  # the graph reads it where it lies: it must live as long
        graph.replay()
        return logits

    return replay


def serve(options):
    model = make_model(options.model, options.device, seed=2)
    forward = forward_of(model)
    places = ropeway.Destinations(model)
    with ropeway.Receiver(name="server", device=options.device, connect_limit=300) as receiver:
        receiver.connect(options.socket).wait()
        for update in receiver:
            report = update.load_into(places).wait()
            with torch.no_grad():
                logits = forward().float().cpu()
            answers = answer_file(options.socket)
            torch.save((report.version, logits), answers + ".new")
            os.replace(answers + ".new", answers)
            print(f"serves version {report.version}, {report.route}, loaded in {report.total * 1e3:.2f} ms", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--socket", default=f"/tmp/ropeway-{os.getuid()}/weights.sock")
    parser.add_argument("--model", type=pathlib.Path)
    parser.add_argument("--device", default="cuda:0" if torch.cuda.is_available() else "cpu")
    serve(parser.parse_args())
