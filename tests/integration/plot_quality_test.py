#!/usr/bin/env python3
"""scripts/plot_quality.py on a small file: it draws every panel, and refuses in one line what makes no sense.

Exit status 77 (skipped) where matplotlib is missing.
"""

import json
import pathlib
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "plot_quality.py"


def row(task, method, ratio, score, setting="shared", codec="raw", origin="selected"):
    return {"task": task, "method": method, "ratio": ratio, "setting": setting, "codec": codec, "origin": origin,
            "score": score, "low": max(0.0, score - 0.05), "high": min(1.0, score + 0.05), "samples": 40}


def small():
    tasks = [{"name": f"task{i}", "title": f"Panel {i}"} for i in range(4)]
    methods = [{"name": name, "title": title} for name, title in
               (("full", "Full cache"), ("kvzip", "KVzip"), ("random", "Random"), ("another", "Not in the palette"))]
    rows = []
    for task in tasks:
        rows.append(row(task["name"], "full", 1.0, 1.0, origin="full"))
        for method in ("kvzip", "random", "another"):
            rows += [row(task["name"], method, ratio, ratio) for ratio in (0.1, 0.3, 0.9)]
        rows.append(row(task["name"], "kvzip", 0.3, 0.95, codec="int4", origin="bands"))
    return {"tasks": tasks, "methods": methods, "rows": rows}


def run(folder, data, out="figure.svg", setting="shared"):
    source = folder / "quality.json"
    source.write_text(data if isinstance(data, str) else json.dumps(data), encoding="utf-8")
    result = subprocess.run([sys.executable, SCRIPT, source, "--setting", setting, "--out", folder / out],
                            capture_output=True, text=True, check=False)
    return result.returncode, result.stderr


def set_row(field, value):
    return lambda data: data["rows"][3].update({field: value})


# What is done to a good file, and what the message must say.
CHANGES = (
    (set_row("score", 1.5), "impossible"),
    (set_row("ratio", 0), "impossible"),
    (set_row("low", float("nan")), "impossible"),
    (set_row("score", "0.5"), "score is not a number"),
    (set_row("high", None), "high is not a number"),
    (set_row("ratio", [0.3]), "ratio is not a number"),
    (set_row("samples", "many"), "samples is not a number"),
    (set_row("samples", True), "samples is not a number"),
    (set_row("task", 7), "task is not a text"),
    (set_row("codec", {}), "codec is not a text"),
    (lambda data: data["rows"][3].pop("score"), "lacks score"),
    (lambda data: data["rows"].append(3), "a row is not an object"),
    (lambda data: data["tasks"][1].pop("title"), "a task lacks title"),
    (lambda data: data["tasks"][1].update({"title": 4}), "title is not a text"),
    (lambda data: data["tasks"].append("task9"), "a task is not an object"),
    (lambda data: data["methods"][1].pop("name"), "a method lacks name"),
    (lambda data: data.update({"methods": {}}), "methods is not a list"),
    (lambda data: data.update({"tasks": [{"name": "other", "title": "Other"}]}), "no rows of setting shared with"),
)


def refused(folder, data, message, **arguments):
    """Exit status 2 and one line that says why."""
    status, error = run(folder, data, **arguments)
    assert status == 2 and message in error and error.count("\n") == 1, (message, status, error)


def main():
    try:
        import matplotlib  # noqa: F401  pylint: disable=import-outside-toplevel,unused-import
    except ImportError:
        print("matplotlib is missing: skipped")
        return 77
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        status, error = run(folder, small())
        assert status == 0, error
        svg = (folder / "figure.svg").read_text(encoding="utf-8")
        # Text is drawn as paths, each with its words in a comment.
        for text in ("Panel 0", "Panel 3", "KVzip", "Random", "Not in the palette", "Full cache", "KVzip, int4",
                     "kept fraction"):
            assert text in svg, text
        assert run(folder, small(), "again.svg")[0] == 0
        assert (folder / "again.svg").read_text(encoding="utf-8") == svg, "the same input, another picture"

        data = small()
        data["tasks"][0]["title"] = data["methods"][1]["title"] = r"costs $\no_such_command$"
        assert run(folder, data)[0] == 0, "a title is not mathematics"

        refused(folder, small(), "per_query", setting="per_query")
        refused(folder, small(), "cannot write", out="no/such/folder.svg")
        refused(folder, small(), "cannot write", out="no/such/folder.png")
        refused(folder, small(), "cannot write", out="figure.riddle")
        for broken, message in (("{", "quality.json"), ("[]", "not an object"), ({"tasks": []}, "tasks"),
                                ("[" * 100_000, "quality.json"), ("\x00", "quality.json")):
            refused(folder, broken, message)
        for change, message in CHANGES:
            data = small()
            change(data)
            refused(folder, data, message)
    print("plot_quality: ok")
    return 0


if __name__ == "__main__":
    sys.exit(main())
