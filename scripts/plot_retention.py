#!/usr/bin/env python3
"""Draws what `kvtier-bench retention --json` measured: hits weighted by quality against capacity, one
panel per quality curve, one line per scheme.

    plot_retention.py RETENTION.json OUT.svg     needs matplotlib
    plot_retention.py --self-test                on made-up rows; exits with 77 without matplotlib
"""

import io
import json
import pathlib
import re
import sys
import tempfile

PANELS = [("weighted", "measured quality curve"), ("weighted_steep", "steep curve (0.1 → 0, 0.3 → 0.9)")]
# Colours that stay apart for colour-blind readers (Okabe and Ito), and in print by their dashes.
SCHEMES = [
    ("banded_gdsf", "banded, degrading, gdsf", {"color": "#D55E00", "linewidth": 2.6, "zorder": 5}),
    ("banded_lru", "banded, degrading, LRU", {"color": "#D55E00", "linewidth": 1.4, "linestyle": ":"}),
    ("whole_1.0_lru", "whole at 1.0, LRU", {"color": "#000000"}),
    ("whole_0.6_lru", "whole at 0.6, LRU", {"color": "#0072B2"}),
    ("whole_0.3_lru", "whole at 0.3, LRU", {"color": "#009E73"}),
    ("whole_0.1_lru", "whole at 0.1, LRU", {"color": "#CC79A7"}),
    ("dense_blocks_lru", "dense shared blocks, LRU", {"color": "#777777", "linestyle": "--"}),
]


def read_rows(data):
    """{(scheme, column): [(GiB, value)]} by capacity, and the limit of the weighted columns."""
    lines, limit = {}, None
    for row in data["rows"]:
        match = re.fullmatch(r"([^/]+)/([0-9.]+)GiB/([^/]+)", row["name"])
        if not match:
            raise ValueError(f"row {row['name']!r} is not <scheme>/<capacity>/<column>")
        lines.setdefault((match.group(1), match.group(3)), []).append((float(match.group(2)), row["value"]))
        if match.group(3) == "weighted":
            limit = row["limit"]
    for points in lines.values():
        points.sort()
    if limit is None:
        raise ValueError("no row of column weighted")
    return lines, limit


def draw(data, out):
    import matplotlib
    matplotlib.use("svg")
    # The same file for the same figures, and text that can be selected.
    matplotlib.rcParams.update({"svg.hashsalt": "kvtier", "svg.fonttype": "none", "font.size": 10})
    from matplotlib import pyplot, ticker

    lines, limit = read_rows(data)
    figure, axes = pyplot.subplots(1, len(PANELS), figsize=(11, 4.6), sharey=True)
    for axis, (column, title) in zip(axes, PANELS):
        axis.axhline(limit, color="#BBBBBB", linewidth=1)
        axis.annotate("every object fits", (0.01, limit), xycoords=("axes fraction", "data"), color="#777777",
                      fontsize=8, xytext=(0, 3), textcoords="offset points")
        for scheme, label, style in SCHEMES:
            points = lines.get((scheme, column), [])
            axis.plot([x for x, _ in points], [y for _, y in points], label=label, **{"linewidth": 1.6, **style})
        axis.set_xscale("log", base=2)
        axis.xaxis.set_major_formatter(ticker.FuncFormatter(
            lambda gib, _: f"{gib / 1024:g} TiB" if gib >= 1024 else f"{gib:g} GiB"))
        axis.tick_params(axis="x", rotation=40)
        axis.set_title(title, fontsize=11)
        axis.set_xlabel("capacity")
        axis.grid(alpha=0.25)
        for side in ("top", "right"):
            axis.spines[side].set_visible(False)
    axes[0].set_ylabel("blocks found × quality, of blocks asked for")
    axes[0].set_ylim(bottom=0)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="center right", frameon=False)
    figure.tight_layout(rect=(0, 0, 0.8, 1))
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None})
    pathlib.Path(out).write_text("".join(line.rstrip() + "\n" for line in text.getvalue().splitlines()),
                                 encoding="utf-8")


def self_test():
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        print("matplotlib is not there: skipped")
        return 77
    rows = [{"name": f"{scheme}/{gib}GiB/{column}", "value": 0.1 * i, "limit": 0.5}
            for scheme, _, _ in SCHEMES for column, _ in PANELS for i, gib in enumerate((0.5, 1, 2048))]
    with tempfile.TemporaryDirectory() as folder:
        out = pathlib.Path(folder, "out.svg")
        draw({"rows": rows}, out)
        text = out.read_text(encoding="utf-8")
    wrong = [label for _, label, _ in SCHEMES if label not in text]
    wrong += [title for _, title in PANELS if title not in text]
    wrong += [word for word in ("2 TiB", "every object fits") if word not in text]
    try:
        read_rows({"rows": [{"name": "nonsense", "value": 1}]})
        wrong.append("a row without a name was read")
    except ValueError:
        pass
    print("self-test:", f"not in the figure: {wrong}" if wrong else "ok")
    return 1 if wrong else 0


def main():
    if sys.argv[1:] == ["--self-test"]:
        return self_test()
    if len(sys.argv) != 3:
        sys.stderr.write(__doc__)
        return 2
    try:
        draw(json.loads(pathlib.Path(sys.argv[1]).read_text(encoding="utf-8")), sys.argv[2])
    except ImportError:
        sys.stderr.write("plot_retention.py: matplotlib is not installed (Debian: python3-matplotlib)\n")
        return 1
    except (OSError, ValueError, KeyError) as error:
        sys.stderr.write(f"plot_retention.py: {sys.argv[1]}: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
