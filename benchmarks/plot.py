#!/usr/bin/env python3
"""Tables and pictures of the lines of JSON that ropeway-bench and peers.py write.

    benchmarks/plot.py table LINES.jsonl              all cases, for people
    benchmarks/plot.py models LINES.jsonl FILE.svg    ropeway, what others do, and the limit, for each model
    benchmarks/plot.py decode LINES.jsonl FILE.svg    what updates take from serving, over their speed

Of lines about the same case the last one counts. `--only cuda:0-cuda:1` leaves out what does not go that way.
"""
import argparse
import json
import math
import sys
from xml.sax.saxutils import escape

# Told apart by eyes that see no red and green too.
LIMIT, OURS, OTHERS = "#999999", ("#0072b2", "#56b4e9", "#009e73"), ("#d55e00", "#e69f00", "#aa4499", "#999933")
WIDTH = 960


def read(path, only):
    cases = {}
    with open(path, encoding="utf-8") as file:
        for number, text in enumerate(file, 1):
            if not text.strip():
                continue
            try:
                line = json.loads(text)
                way = f"{line['from']}-{line['to']}"
                key = (line["program"], line["case"], line["name"] if "name" in line else "", line.get("route"),
                       line["model"], line["layers"], way, line["device"], line.get("memory"), line.get("prepared"),
                       line.get("pace"), line.get("receivers"), line.get("bucket_bytes"), line.get("slots"))
            except (ValueError, KeyError, TypeError) as error:
                sys.exit(f"{path}, line {number}: no result of a benchmark ({error!r})")
            if only and way != only:
                continue
            cases.pop(key, None)
            cases[key] = line
    if not cases:
        sys.exit(f"{path} holds no result")
    return list(cases.values())


def model_of(line):
    name = line["model"].rsplit("/", 1)[-1]
    return f"{name}, {line['layers']} layers" if line["layers"] else name


def way_of(line):
    return line["from"] if line["from"] == line["to"] else f"{line['from']} to {line['to']}"


def series_of(line):
    if line["program"] == "peers.py":
        return line["name"]
    return f"ropeway, {line['route']}" + (", prepared" if line.get("prepared") else "")


def time_text(seconds):
    if seconds < 1e-3:
        return f"{seconds * 1e6:.0f} us"
    return f"{seconds * 1e3:.2f} ms" if seconds < 1 else f"{seconds:.3f} s"


def table(lines):
    rows = [("case", "model", "way", "who", "median", "spread", "GB/s", "of the limit", "CPU us, sender/receivers")]
    for line in lines:
        who = series_of(line)
        if line["case"] == "cold":
            whole = line["start_to_committed"]
            rows.append((line["case"], model_of(line), way_of(line), who, time_text(whole["median_s"]),
                         f"{whole['spread']:.3f}", "", "", ""))
            continue
        send = line["send"]
        if line["case"] in ("shards", "fan-out") or line["receivers"] != 1:
            who += f", {line['name']}"
        if line.get("memory") == "segments":
            who += ", segments"
        extra = ""
        if line["case"] == "decode":
            who += f", {line['pace']}"
            extra = f" step p50 x {line['p50_ratio']:.2f}, p99 x {line['p99_ratio']:.2f}"
        elif "cpu_median_us" in line:
            extra = f"{line['cpu_median_us']['sender']:.0f}/{line['cpu_median_us']['receivers']:.0f}"
        median = time_text(send["median_s"])
        if "p99_s" in send and line["case"] == "steady":
            median += f" (p99 {time_text(send['p99_s'])})"
        ratio = line.get("ratio_to_limit")
        rows.append((line["case"], model_of(line), way_of(line), who, median, f"{send['spread']:.3f}",
                     f"{send['GB_per_s']:.1f}", f"{ratio:.3f}" if ratio else "-", extra.strip()))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() + "\n" for row in rows)


def svg(height, title, inside):
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        'font-family="DejaVu Sans, Verdana, sans-serif" font-size="12" fill="#222222">',
        f"<title>{escape(title)}</title>", f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
        f'<text x="{WIDTH / 2}" y="26" text-anchor="middle" font-size="15" font-weight="bold">{escape(title)}</text>',
        *inside, "</svg>"]) + "\n"


def step_of(span, most):
    """A round number of which at most about `most` make up the span."""
    raw = span / most
    magnitude = 10 ** math.floor(math.log10(raw))
    return next(m * magnitude for m in (1, 2, 2.5, 5, 10) if m * magnitude >= raw * (1 - 1e-9))


def legend(names, colours, top):
    out, at, row = [], 70, 0
    for name, colour in zip(names, colours):
        width = 36 + 7.6 * len(name)
        if at + width > WIDTH - 20:
            at, row = 70, row + 1
        out.append(f'<rect x="{at:.0f}" y="{top + 20 * row - 10}" width="14" height="11" fill="{colour}"/>')
        out.append(f'<text x="{at + 19:.0f}" y="{top + 20 * row}">{escape(name)}</text>')
        at += width
    return out, row + 1


def models(lines, title):
    """A bar for each way in each model."""
    chosen = [line for line in lines if line["case"] == "steady" and line["receivers"] == 1 and "send" in line
              and line.get("memory", "region") != "segments" and not line.get("prepared")]
    if not chosen:
        sys.exit("there is no steady case with one receiver")
    groups = {}
    for line in chosen:
        groups.setdefault((model_of(line), way_of(line)), []).append(line)
    names = list(dict.fromkeys(series_of(line) for line in chosen))
    names.sort(key=lambda name: not name.startswith("ropeway"))
    ours = [name for name in names if name.startswith("ropeway")]
    colour = {name: OURS[i % len(OURS)] for i, name in enumerate(ours)}
    colour |= {name: OTHERS[i % len(OTHERS)] for i, name in enumerate(n for n in names if n not in ours)}
    drawn, rows = legend(["one plain copy"] + names, [LIMIT] + [colour[name] for name in names], 54)
    top, height, left = 64 + 20 * rows, 320, 64
    bars = {}
    for group, members in groups.items():
        bars[group] = []
        # The plain copy, as the fastest of these saw it: a limit of two copies is another thing.
        limits = [line["limit"] for line in members if line.get("limit")
                  and (line["program"] == "peers.py" or line["route"] == "mapped")]
        limits = limits or [line["limit"] for line in members if line.get("limit")]
        if limits:
            best = max(limits, key=lambda one: one["GB_per_s"])
            bars[group].append((best["GB_per_s"], LIMIT, best["is"]))
        for name in names:
            for line in members:
                if series_of(line) == name:
                    bars[group].append((line["send"]["GB_per_s"], colour[name], name))
    most = max(value for group in bars.values() for value, _, _ in group) * 1.08
    step = step_of(most, 6)
    most = step * math.ceil(most / step)
    y_at = lambda value: top + height - height * value / most
    for i in range(round(most / step) + 1):
        drawn.append(f'<path d="M{left} {y_at(i * step):.1f}H{WIDTH - 20}" stroke="#dddddd"/>')
        drawn.append(f'<text x="{left - 7}" y="{y_at(i * step) + 4:.1f}" text-anchor="end">{i * step:g}</text>')
    drawn.append(f'<text x="{left}" y="{top - 10}" font-weight="bold">payload [GB/s]</text>')
    cell = (WIDTH - 20 - left) / len(bars)
    for number, ((model, way), members) in enumerate(bars.items()):
        width = min(46.0, (cell - 20) / len(members))
        at = left + cell * (number + 0.5) - width * len(members) / 2
        for value, fill, name in members:
            drawn.append(f'<rect x="{at + 1:.1f}" y="{y_at(value):.1f}" width="{width - 2:.1f}" '
                         f'height="{top + height - y_at(value):.1f}" fill="{fill}"><title>{escape(name)}: {value:.1f} '
                         "GB/s</title></rect>")
            text = f"{value:.0f}" if value >= 100 else f"{value:.1f}"
            drawn.append(f'<text x="{at + width / 2:.1f}" y="{y_at(value) - 4:.1f}" text-anchor="middle" '
                         f'font-size="{min(10.0, width / 2.5):.1f}">{text}</text>')
            at += width
        for line, text in enumerate((*model.split(", "), way)):
            drawn.append(f'<text x="{left + cell * (number + 0.5):.1f}" y="{top + height + 18 + 16 * line}" '
                         f'text-anchor="middle">{escape(text)}</text>')
    drawn.append(f'<path d="M{left} {top + height}H{WIDTH - 20}" stroke="#333333"/>')
    return svg(top + height + 62, title or f"Payload a second, {chosen[-1]['device']}", drawn)


def decode(lines, title):
    """Two curves for each route: the median step and the 99th percentile, beside updates, in steps without one."""
    chosen = sorted((line for line in lines if line["case"] == "decode"), key=lambda line: line["send"]["GB_per_s"])
    if not chosen:
        sys.exit("there is no decode case")
    routes = sorted({line["route"] for line in chosen})
    curves = [(f"{word} of a step" + (f", {route}" if len(routes) > 1 else ""), f"{word}_ratio", colours[at], route)
              for at, route in enumerate(routes) for word, colours in (("p50", OURS), ("p99", OTHERS))]
    # What a route is held back by: a pace, or a smaller ring.
    label = lambda line: line["pace"] if line["route"] == "mapped" else f"{line['slots']} x {line['bucket_bytes'] >> 20} MiB"
    drawn, rows = legend([name for name, _, _, _ in curves], [colour for _, _, colour, _ in curves], 54)
    top, height, left = 64 + 20 * rows, 320, 64
    right = WIDTH - 70
    most_x = max(line["send"]["GB_per_s"] for line in chosen) * 1.05
    step = step_of(most_x, 8)
    most_x = step * math.ceil(most_x / step)
    values = [line[key] for line in chosen for _, key, _, _ in curves if line[key] > 0]
    low, high = min(1.0, *values), max(values) * 1.1
    if high <= low:
        high = low * 2
    x_at = lambda value: left + (right - left) * value / most_x
    y_at = lambda value: top + height - height * math.log(value / low) / math.log(high / low)
    for tick in (m * 10 ** e for e in range(-2, 5) for m in (1, 1.5, 2, 3, 5, 7)):
        if low <= tick <= high:
            drawn.append(f'<path d="M{left} {y_at(tick):.1f}H{right}" stroke="#dddddd"/>')
            drawn.append(f'<text x="{left - 7}" y="{y_at(tick) + 4:.1f}" text-anchor="end">{tick:g}</text>')
    for i in range(round(most_x / step) + 1):
        drawn.append(f'<path d="M{x_at(i * step):.1f} {top + height}v4" stroke="#333333"/>')
        drawn.append(f'<text x="{x_at(i * step):.1f}" y="{top + height + 18}" text-anchor="middle">{i * step:g}</text>')
    drawn.append(f'<text x="{left}" y="{top - 10}" font-weight="bold">a step beside updates, in steps without '
                 "(logarithmic)</text>")
    drawn.append(f'<text x="{(left + right) / 2}" y="{top + height + 38}" text-anchor="middle">payload of an update '
                 "[GB/s]</text>")
    drawn.append(f'<path d="M{left} {top}v{height}H{right}" stroke="#333333" fill="none"/>')
    for name, key, colour, route in curves:
        points = [(x_at(line["send"]["GB_per_s"]), y_at(line[key]), line) for line in chosen
                  if line[key] > 0 and line["route"] == route]
        path = "L".join(f"{x:.1f} {y:.1f}" for x, y, _ in points)
        drawn.append(f'<path d="M{path}" stroke="{colour}" stroke-width="1.5" fill="none"/>')
        for x, y, line in points:
            drawn.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.4" fill="{colour}"><title>{escape(name)}, '
                         f'{escape(label(line))}: {line[key]:.2f} at {line["send"]["GB_per_s"]:.0f} GB/s</title></circle>')
            if key == "p99_ratio":
                drawn.append(f'<text x="{x - 5:.1f}" y="{y - 7:.1f}" text-anchor="end" font-size="10">'
                             f'{escape(label(line))}</text>')
    last = chosen[-1]
    return svg(top + height + 52, title or f"Serving beside updates of {model_of(last)}, {last['device']}", drawn)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("table", "models", "decode"))
    parser.add_argument("lines")
    parser.add_argument("picture", nargs="?")
    parser.add_argument("--title")
    parser.add_argument("--only", help="FROM-TO, cuda:0-cuda:1 say")
    said = parser.parse_args()
    if (said.what == "table") != (said.picture is None):
        parser.error("a picture needs a file, a table none")
    lines = read(said.lines, said.only)
    if said.what == "table":
        print(table(lines), end="")
        return
    picture = (models if said.what == "models" else decode)(lines, said.title)
    with open(said.picture, "w", encoding="utf-8") as file:
        file.write(picture)


if __name__ == "__main__":
    main()
