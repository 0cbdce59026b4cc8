#!/usr/bin/env python3
"""Writes unicode_tables.hpp: what BERT's basic tokenizer asks of Unicode, from Python's unicodedata.

    samples/inference_server/make_unicode.py >samples/inference_server/unicode_tables.hpp
"""
import sys
import unicodedata

EVERY = range(0x110000)
HANGUL = range(0xAC00, 0xAC00 + 11172)  # decomposed by arithmetic, in tokenizer.cpp


def ranges(wanted):
    found = []
    for code in EVERY:
        if not wanted(code):
            continue
        if found and found[-1][1] == code - 1:
            found[-1][1] = code
        else:
            found.append([code, code])
    return found


def category(code):
    return unicodedata.category(chr(code))


def space(code):
    return chr(code) in "\t\n\r" or category(code)[0] == "Z"


def dropped(code):
    # Control and format characters, private ones, and accents that stand alone. What is not assigned stays.
    return code in (0, 0xFFFD) or not space(code) and category(code) in ("Cc", "Cf", "Co", "Cs", "Mn")


def punctuation(code):
    return category(code)[0] == "P" or code < 128 and 32 < code and not chr(code).isalnum()


def folded(code):
    """Without accents and in lower case: each character for itself, as the tokenizers of the field do it."""
    apart = unicodedata.normalize("NFD", chr(code))
    return [ord(small) for one in apart if unicodedata.category(one) != "Mn" for small in one.lower()
            if unicodedata.category(small) != "Mn"]


def folds():
    """Runs (first, last, step, offset) of characters that become one, and the few that become several."""
    runs, several = [], []
    for code in EVERY:
        if dropped(code) or code in HANGUL or 0xD800 <= code <= 0xDFFF:
            continue
        to = folded(code)
        if to == [code]:
            continue
        if len(to) != 1:
            several.append((code, to))
            continue
        offset = to[0] - code
        last = runs[-1] if runs else None
        if last and last[3] == offset and last[0] == last[1] and code - last[1] in (1, 2):
            runs[-1] = (last[0], code, code - last[1], offset)
        elif last and last[3] == offset and code - last[1] == last[2]:
            runs[-1] = (last[0], code, last[2], offset)
        else:
            runs.append((code, code, 1, offset))
    assert all(one[1] < other[0] for one, other in zip(runs, runs[1:])), "runs overlap"
    return runs, several


def show(declaration, rows):
    print(f"inline constexpr {declaration}[] = {{")
    line = "   "
    for row in rows:
        if len(line) + len(row) + 2 > 110:
            print(line)
            line = "   "
        line += f" {row},"
    print(line)
    print("};")


def main():
    print(f"""// Made by make_unicode.py from Unicode {unicodedata.unidata_version}; not for changing by hand.
// A sample of ropeway; Apache-2.0.
#pragma once
#include <cstdint>

// clang-format off
namespace unicode {{

struct range {{ std::uint32_t first, last; }};
struct run {{ std::uint32_t first, last, step; std::int32_t offset; }};
struct several {{ std::uint32_t from, to[3]; }};
""")
    for name, rule, words in (("dropped", dropped, "Controls, private characters, and accents that stand alone."),
                              ("spaces", space, "White space."), ("punctuation", punctuation, "Punctuation.")):
        print(f"// {words}")
        show(f"range {name}", [f"{{{a:#x}, {b:#x}}}" for a, b in ranges(rule)])
    runs, more = folds()
    print("// One character without its accents and in lower case, where that is one other.")
    show("run folds", [f"{{{a:#x}, {b:#x}, {step}, {offset}}}" for a, b, step, offset in runs])
    print("// The same where it is none or several.")
    assert all(len(to) <= 3 for _, to in more)
    show("several long_folds", [f"{{{a:#x}, {{{', '.join(f'{one:#x}' for one in to)}}}}}" for a, to in more])
    print("\n} // namespace unicode")


if __name__ == "__main__":
    sys.exit(main())
