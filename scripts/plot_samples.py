#!/usr/bin/env python3
"""Draws what `ropeway-soak --sample FILE.csv` has written: a panel for each quantity, a line for each process.

    scripts/plot_samples.py FILE.csv FILE.svg --title TEXT

A quantity that is the same in all samples of all processes, and zero, is left out. Where a process was started anew,
its line is interrupted.
"""
import argparse
import csv
import math
import sys
from xml.sax.saxutils import escape

# Column of the CSV, what to call it, its unit, and what to divide by.
QUANTITIES = (
    ("anon_kib", "memory of its own (RssAnon)", "MiB", 1024),
    ("shared_kib", "shared memory (RssShmem)", "MiB", 1024),
    ("heap_bytes", "heap in use", "MiB", 1 << 20),
    ("fds", "file descriptors", "count", 1),
    ("mappings", "mappings", "count", 1),
    ("threads", "threads", "count", 1),
    ("device_mib", "GPU memory in use, by all", "MiB", 1),
)
# Told apart by eyes that see no red and green too, on white, and each with a mark of its own.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#aa4499", "#555555", "#999933")
WIDTH, PANEL, COLUMNS = 960, 190, 2
LEFT, RIGHT, TOP, BOTTOM, GAP = 62, 18, 92, 8, 26


def read(path):
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    if not rows:
        sys.exit(f"{path} holds no sample")
    return rows


def steps(low, high, most):
    """Round numbers from `low` or just below it to `high` or just above it, at most about `most` of them."""
    span = high - low or 1
    raw = span / most
    magnitude = 10 ** math.floor(math.log10(raw))
    step = next(m * magnitude for m in (1, 2, 2.5, 5, 10) if m * magnitude >= raw)
    first = math.floor(low / step + 1e-9)
    last = math.ceil(high / step - 1e-9)
    return [round(i * step, 10) for i in range(first, last + 1)]


def text_of(value):
    return f"{value:,.10g}".replace(",", "\u2009")


def mark(kind, x, y, colour):
    if kind % 3 == 0:
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.4" fill="{colour}"/>'
    if kind % 3 == 1:
        return f'<rect x="{x - 2.2:.1f}" y="{y - 2.2:.1f}" width="4.4" height="4.4" fill="{colour}"/>'
    return f'<path d="M{x - 2.8:.1f} {y + 2.2:.1f}h5.6l-2.8 -5z" fill="{colour}"/>'


def panel(rows, processes, column, name, unit, divisor, left, top, width, height, below):
    values = [float(row[column]) / divisor for row in rows]
    updates = [float(row["update"]) for row in rows]
    # From zero, so that what looks flat is flat.
    ys = steps(0, max(values) * 1.08 or 1, 4)
    xs = [x for x in steps(0, max(updates), 5)]
    x_at = lambda value: left + width * value / xs[-1]
    y_at = lambda value: top + height - height * value / ys[-1]
    out = [f'<text x="{left}" y="{top - 9}" font-weight="bold">{escape(name)} [{unit}]</text>']
    for y in ys:
        out.append(f'<path d="M{left} {y_at(y):.1f}h{width}" stroke="#dddddd"/>')
        out.append(f'<text x="{left - 7}" y="{y_at(y) + 4:.1f}" text-anchor="end">{text_of(y)}</text>')
    for x in xs:
        out.append(f'<path d="M{x_at(x):.1f} {top + height}v4" stroke="#333333"/>')
        anchor = "end" if x == xs[-1] else "middle"
        out.append(f'<text x="{x_at(x):.1f}" y="{top + height + 17}" text-anchor="{anchor}">{text_of(x)}</text>')
    out.append(f'<path d="M{left} {top}v{height}h{width}" stroke="#333333" fill="none"/>')
    if below:
        out.append(f'<text x="{left + width / 2}" y="{top + height + 35}" text-anchor="middle">update</text>')
    for number, process in enumerate(processes):
        colour = COLOURS[number % len(COLOURS)]
        path, life = [], None
        dots = []
        for row in rows:
            if row["process"] != process:
                continue
            x, y = x_at(float(row["update"])), y_at(float(row[column]) / divisor)
            path.append(f'{"L" if row["life"] == life else "M"}{x:.1f} {y:.1f}')
            life = row["life"]
            dots.append(mark(number, x, y, colour))
        out.append(f'<path d="{"".join(path)}" stroke="{colour}" stroke-width="1.3" fill="none"/>')
        out.extend(dots)
    return out


def draw(rows, title):
    processes = list(dict.fromkeys(row["process"] for row in rows))
    shown = [one for one in QUANTITIES if any(float(row[one[0]]) for row in rows)]
    lines = -(-len(shown) // COLUMNS)
    height = TOP + lines * (PANEL + GAP) + BOTTOM
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
           'font-family="DejaVu Sans, Verdana, sans-serif" font-size="12" fill="#222222">',
           f"<title>{escape(title)}</title>",
           f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
           f'<text x="{WIDTH / 2}" y="26" text-anchor="middle" font-size="15" font-weight="bold">{escape(title)}</text>']
    at = LEFT
    for number, process in enumerate(processes):
        colour = COLOURS[number % len(COLOURS)]
        out.append(f'<path d="M{at} 46h22" stroke="{colour}" stroke-width="1.3"/>')
        out.append(mark(number, at + 11, 46, colour))
        out.append(f'<text x="{at + 28}" y="50">{escape(process)}</text>')
        at += 60 + 7.2 * len(process)
    cell = WIDTH / COLUMNS
    for number, (column, name, unit, divisor) in enumerate(shown):
        left = LEFT + (number % COLUMNS) * cell
        top = TOP + (number // COLUMNS) * (PANEL + GAP)
        below = number + COLUMNS >= len(shown)
        out.extend(panel(rows, processes, column, name, unit, divisor, left, top, cell - LEFT - RIGHT, PANEL - 40, below))
    out.append("</svg>")
    return "\n".join(out) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("samples")
    parser.add_argument("picture")
    parser.add_argument("--title", required=True, help="what was run")
    said = parser.parse_args()
    picture = draw(read(said.samples), said.title)
    with open(said.picture, "w", encoding="utf-8") as file:
        file.write(picture)


if __name__ == "__main__":
    main()
