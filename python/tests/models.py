"""Small models with random weights, for tests that compare logits of two processes."""
from __future__ import annotations

import torch


class Block(torch.nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.before, self.between = torch.nn.RMSNorm(width), torch.nn.RMSNorm(width)
        self.qkv = torch.nn.Linear(width, 3 * width, bias=False)
        self.out = torch.nn.Linear(width, width, bias=False)
        self.gate, self.up = (torch.nn.Linear(width, 2 * width, bias=False) for _ in range(2))
        self.down = torch.nn.Linear(2 * width, width, bias=False)

    def forward(self, x):
        batch, length, width = x.shape
        q, k, v = (part.view(batch, length, self.heads, -1).transpose(1, 2)
                   for part in self.qkv(self.before(x)).chunk(3, dim=-1))
        mixed = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, length, width))
        y = self.between(x)
        return x + self.down(torch.nn.functional.silu(self.gate(y)) * self.up(y))


class Transformer(torch.nn.Module):
    """A language model as they are, with the output tied to the embedding."""

    def __init__(self, words=500, width=128, heads=4, layers=3, length=64):
        super().__init__()
        self.embed = torch.nn.Embedding(words, width)
        self.place = torch.nn.Parameter(torch.randn(length, width) / 8)
        self.blocks = torch.nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.norm = torch.nn.RMSNorm(width)
        self.head = torch.nn.Linear(width, words, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("scale", torch.tensor(0.7))

    def forward(self, tokens):
        x = self.embed(tokens) + self.place[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)) * self.scale


def make(kind, seed, device):
    """A model of a kind: ``plain`` or ``llama`` (of transformers), in bf16."""
    torch.manual_seed(seed)
    if kind == "plain":
        model = Transformer()
    else:
        import transformers

        shape = dict(hidden_size=256, num_hidden_layers=4, num_attention_heads=8, num_key_value_heads=4, vocab_size=1000,
                     intermediate_size=688, max_position_embeddings=128)
        model = transformers.AutoModelForCausalLM.from_config(transformers.LlamaConfig(**shape))
    return model.to(torch.bfloat16).to(device).eval()


def tokens(device):
    return torch.arange(16, device=device)[None] % 499


def logits_of(model, prompt):
    with torch.no_grad():
        found = model(prompt, use_cache=False) if hasattr(model, "config") else model(prompt)
    return getattr(found, "logits", found)


def graph_of(model, prompt):
    """A function that replays the forward pass from a CUDA graph, and the tensor that it leaves the logits in."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            logits_of(model, prompt)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = logits_of(model, prompt)
    return graph, found


def step(model, version):
    """A training step: every weight is another one afterwards."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1 + 0.01 * version)
