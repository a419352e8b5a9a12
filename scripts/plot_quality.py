#!/usr/bin/env python3
"""Draws what kvtier-eval quality --json wrote: one panel a task, one line a method.

    plot_quality.py QUALITY.json --setting shared --out FILE.svg
    plot_quality.py QUALITY.json --setting per_query --out FILE.svg

x is the kept fraction of the context's KV pairs (logarithmic), y the share of right answers with
its 95 % interval. Rows with another codec than raw are single points. Needs matplotlib (Debian:
python3-matplotlib). Equal input gives equal bytes under one version of matplotlib.

Exit status: 0 drawn, 2 the command line or the file makes no sense, 3 no matplotlib.
"""

import argparse
import io
import json
import math
import sys

SETTINGS = {
    "shared": "One compressed cache serves all questions of a document",
    "per_query": "Each question compresses its own cache",
}
# Okabe and Ito's palette, told apart by colour-blind people; markers say it once more.
STYLES = {
    "kvzip": ("#D55E00", "o"),
    "kvzip+": ("#0072B2", "D"),
    "uniform": ("#009E73", "s"),
    "head": ("#CC79A7", "P"),
    "snapkv": ("#E69F00", "^"),
    "pyramidkv": ("#56B4E9", "v"),
    "h2o": ("#7A5195", "<"),
    "sink_recent": ("#8C6D31", ">"),
    "random": ("#999999", "x"),
}
OTHER_STYLE = ("#000000", ".")
CODEC_MARKERS = {"int4": "*", "int8": "p"}
COLUMNS = 3


class BadInput(Exception):
    """The file is not what kvtier-eval quality writes, or the picture cannot be written."""


def is_number(value):
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def is_text(value):
    return isinstance(value, str)


def check_fields(path, what, item, fields):
    """Refuses an item that is no object, or lacks a field, or has one of another type."""
    if not isinstance(item, dict):
        raise BadInput(f"{path}: a {what} is not an object: {item!r}")
    for field, fits in fields.items():
        if field not in item:
            raise BadInput(f"{path}: a {what} lacks {field}: {item}")
        if not fits(item[field]):
            raise BadInput(f"{path}: a {what} whose {field} is not a {fits.__name__[3:]}: {item}")


def load(path):
    """The parsed file, checked as far as it is drawn."""
    try:
        with open(path, encoding="utf-8") as file:
            data = json.load(file)
    except (OSError, ValueError, RecursionError) as error:
        raise BadInput(f"{path}: {error}") from error
    if not isinstance(data, dict):
        raise BadInput(f"{path}: not an object")
    for field in ("tasks", "methods", "rows"):
        if not isinstance(data.get(field), list) or not data[field]:
            raise BadInput(f"{path}: {field} is not a list with something in it")
    for task in data["tasks"]:
        check_fields(path, "task", task, {"name": is_text, "title": is_text})
    for method in data["methods"]:
        check_fields(path, "method", method, {"name": is_text, "title": is_text})
    for row in data["rows"]:
        check_fields(path, "row", row, {
            "task": is_text, "method": is_text, "ratio": is_number, "setting": is_text, "codec": is_text,
            "score": is_number, "low": is_number, "high": is_number, "samples": is_number})
        if not 0 < row["ratio"] <= 1 or not 0 <= row["low"] <= row["score"] <= row["high"] <= 1:
            raise BadInput(f"{path}: a row with impossible numbers: {row}")
    return data


def series(rows, task, method, setting, codec):
    """Rows of one line by ratio, one per ratio; an object's bands win over selected rows."""
    by_ratio = {}
    for row in rows:
        if (row["task"], row["method"], row["setting"], row["codec"]) == (task, method, setting, codec):
            if row["ratio"] not in by_ratio or row.get("origin") == "bands":
                by_ratio[row["ratio"]] = row
    return [by_ratio[ratio] for ratio in sorted(by_ratio)]


def draw_line(axes, line, label, color, marker, front):
    ratios = [row["ratio"] for row in line]
    scores = [100 * row["score"] for row in line]
    below = [100 * (row["score"] - row["low"]) for row in line]
    above = [100 * (row["high"] - row["score"]) for row in line]
    return axes.errorbar(
        ratios, scores, yerr=[below, above], label=label, color=color, marker=marker,
        markersize=6 if front else 4.5, linewidth=2.4 if front else 1.4, elinewidth=0.9, capsize=2,
        zorder=6 if front else 4, clip_on=False)


def draw_panel(axes, data, task, setting):
    """Draws one task; returns {label: handle}."""
    rows = data["rows"]
    handles = {}
    full = series(rows, task["name"], "full", setting, "raw")
    if full:
        row = full[-1]
        handles["Full cache"] = axes.axhline(100 * row["score"], color="black", linestyle=(0, (4, 3)),
                                             linewidth=1.1, zorder=3)
        axes.axhspan(100 * row["low"], 100 * row["high"], color="black", alpha=0.07, linewidth=0, zorder=1)
    # The most interesting line is drawn last, on top.
    for method in sorted(data["methods"], key=lambda m: m["name"] == "kvzip"):
        line = series(rows, task["name"], method["name"], setting, "raw")
        if method["name"] != "full" and line:
            color, marker = STYLES.get(method["name"], OTHER_STYLE)
            handles[method["title"]] = draw_line(axes, line, method["title"], color, marker,
                                                 front=method["name"] == "kvzip")
    for codec, marker in CODEC_MARKERS.items():
        line = series(rows, task["name"], "kvzip", setting, codec)
        if line:
            handles[f"KVzip, {codec}"] = axes.scatter(
                [row["ratio"] for row in line], [100 * row["score"] for row in line], marker=marker,
                s=90, facecolor="white", edgecolor="black", linewidth=1.0, zorder=7, clip_on=False)
    samples = max((row["samples"] for row in rows if row["task"] == task["name"]), default=0)
    axes.set_title(f"{task['title']}  (n = {samples:,})", fontsize=10, loc="left", parse_math=False)
    return handles


def style_axes(axes, ratios):
    from matplotlib import ticker  # pylint: disable=import-outside-toplevel

    axes.set_xscale("log")
    axes.set_xlim(min(ratios) * 0.9, 1.08)
    axes.set_ylim(-3, 104)
    axes.xaxis.set_major_locator(ticker.FixedLocator(ratios))
    # A label close to the next one would touch it; its tick and grid line stay.
    crowded = {a for a, b in zip(ratios, ratios[1:]) if b / a < 1.2}
    axes.xaxis.set_major_formatter(
        ticker.FuncFormatter(lambda value, _: "" if any(math.isclose(value, c) for c in crowded) else f"{value:g}"))
    axes.xaxis.set_minor_locator(ticker.NullLocator())
    axes.yaxis.set_major_locator(ticker.MultipleLocator(20))
    axes.grid(True, color="#DDDDDD", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def draw(data, setting, out):
    import matplotlib  # pylint: disable=import-outside-toplevel

    matplotlib.use("Agg")
    from matplotlib import pyplot  # pylint: disable=import-outside-toplevel

    matplotlib.rcParams.update({"svg.hashsalt": "kvtier", "font.family": "DejaVu Sans", "svg.fonttype": "path"})
    ratios = sorted({row["ratio"] for row in data["rows"] if row["setting"] == setting})
    if not ratios:
        raise BadInput(f"no rows of setting {setting}")
    tasks = data["tasks"]
    columns = min(COLUMNS, len(tasks))
    lines = math.ceil(len(tasks) / columns)
    figure, grid = pyplot.subplots(lines, columns, figsize=(4.0 * columns, 2.9 * lines + 1.2), sharey=True,
                                   squeeze=False)
    handles = {}
    for index, axes in enumerate(grid.flat):
        if index >= len(tasks):
            axes.set_visible(False)
            continue
        handles.update(draw_panel(axes, data, tasks[index], setting))
        style_axes(axes, ratios)
        if index % columns == 0:
            axes.set_ylabel("right answers, %", fontsize=9)
        if index + columns >= len(tasks):
            axes.set_xlabel("kept fraction of the KV pairs", fontsize=9)
    if not handles:
        raise BadInput(f"no rows of setting {setting} with one of the tasks and methods")
    order = ["Full cache"] + [m["title"] for m in data["methods"]] + [f"KVzip, {c}" for c in CODEC_MARKERS]
    labels = sorted(handles, key=lambda label: order.index(label) if label in order else len(order))
    figure.suptitle(SETTINGS[setting], fontsize=12, x=0.01, ha="left")
    legend_columns = math.ceil(len(labels) / math.ceil(len(labels) / 7))
    legend_lines = math.ceil(len(labels) / legend_columns)
    bottom = (0.12 + 0.24 * legend_lines) / figure.get_size_inches()[1]
    legend = figure.legend([handles[label] for label in labels], labels, loc="lower center", ncol=legend_columns,
                           frameon=False, fontsize=9)
    for text in legend.get_texts():
        text.set_parse_math(False)
    figure.tight_layout(rect=(0, bottom, 1, 1))
    write(figure, out)


def write(figure, out):
    try:
        if not out.endswith(".svg"):
            figure.savefig(out)  # ValueError: an ending that is no format
            return
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
        with open(out, "w", encoding="utf-8") as file:  # matplotlib leaves white space at the ends of lines
            file.writelines(line.rstrip() + "\n" for line in buffer.getvalue().splitlines())
    except (OSError, ValueError) as error:
        raise BadInput(f"cannot write {out}: {error}") from error


def main():
    parser = argparse.ArgumentParser(description="Draws what kvtier-eval quality --json wrote.")
    parser.add_argument("json", help="file that kvtier-eval quality --json wrote")
    parser.add_argument("--setting", choices=sorted(SETTINGS), default="shared")
    parser.add_argument("--out", required=True, help="picture to write; its ending says the format")
    arguments = parser.parse_args()
    try:
        draw(load(arguments.json), arguments.setting, arguments.out)
    except ImportError:
        print("plot_quality: matplotlib is missing (Debian: python3-matplotlib)", file=sys.stderr)
        return 3
    except BadInput as error:
        print("plot_quality:", " ".join(str(error).split()), file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
