#!/usr/bin/env python3
"""scripts/plot_quality.py on a small file: it draws every panel, and refuses what makes no sense.

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

        status, error = run(folder, small(), setting="per_query")
        assert status == 2 and "per_query" in error, error
        for broken, message in (("{", "quality.json"), ("[]", "not an object"), ({"tasks": []}, "tasks")):
            status, error = run(folder, broken)
            assert status == 2 and message in error, (broken, error)
        data = small()
        data["rows"][3]["score"] = 1.5
        status, error = run(folder, data)
        assert status == 2 and "impossible" in error, error
        del data["rows"][3]["score"]
        status, error = run(folder, data)
        assert status == 2 and "lacks score" in error, error
    print("plot_quality: ok")
    return 0


if __name__ == "__main__":
    sys.exit(main())
