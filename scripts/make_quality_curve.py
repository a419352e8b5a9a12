#!/usr/bin/env python3
"""Makes the quality curve of kvtier-bench retention from what `kvtier-eval quality --json` measured: the
mean over tasks of a method's score over the whole cache's, per ratio, in the setting where one cache
serves all queries. A score that falls when the ratio rises (sampling) is lifted to the one below it.

    make_quality_curve.py QUALITY.json [METHOD] > bench/data/quality_curve.json    METHOD: kvzip
    make_quality_curve.py --self-test
"""

import json
import sys


def curve(rows, method):
    """[(ratio, quality)], rising. ValueError if a task lacks a ratio or has no full score."""
    def scores(name):
        return {(row["task"], row["ratio"]): row["score"] for row in rows
                if row["method"] == name and row.get("codec", "raw") == "raw"
                and (row["setting"] == "shared" or name == "full")}  # The whole cache is the same in both.

    full = {task: score for (task, _), score in scores("full").items()}
    kept = scores(method)
    tasks = sorted({task for task, _ in kept if full.get(task, 0) > 0})
    if not tasks:
        raise ValueError(f"no task with rows of full and {method} in the setting shared")
    points, best = [], 0
    for ratio in sorted({ratio for _, ratio in kept if 0 < ratio < 1}):
        shares = []
        for task in tasks:
            if (task, ratio) not in kept:
                raise ValueError(f"task {task} has no row of {method} at ratio {ratio}")
            shares.append(kept[task, ratio] / full[task])
        best = max(best, min(1, sum(shares) / len(shares)))
        points.append((ratio, round(best, 4)))
    return tasks, points + [(1.0, 1.0)]


def self_test():
    def row(task, method, ratio, score, setting="shared"):
        return {"task": task, "method": method, "ratio": ratio, "score": score, "setting": setting, "codec": "raw"}

    rows = [row("a", "full", 1, 0.8), row("b", "full", 1, 1), row("c", "full", 1, 0), row("c", "kvzip", 0.1, 0),
            row("a", "kvzip", 0.1, 0.4), row("b", "kvzip", 0.1, 0.5), row("a", "kvzip", 0.3, 0.4),
            row("b", "kvzip", 0.3, 0.4), row("a", "kvzip", 0.1, 0.1, "per_query"), row("a", "random", 0.1, 0)]
    right = curve(rows, "kvzip") == (["a", "b"], [(0.1, 0.5), (0.3, 0.5), (1.0, 1.0)])
    for broken in ([], rows[1:] + [row("b", "kvzip", 0.5, 1), row("a", "full", 1, 1)]):
        try:
            curve(broken, "kvzip")
            right = False
        except ValueError:
            pass
    print("self-test:", "ok" if right else "wrong")
    return 0 if right else 1


def main():
    if sys.argv[1:] == ["--self-test"]:
        return self_test()
    if len(sys.argv) not in (2, 3):
        sys.stderr.write(__doc__)
        return 2
    method = sys.argv[2] if len(sys.argv) == 3 else "kvzip"
    try:
        with open(sys.argv[1], encoding="utf-8") as file:
            data = json.load(file)
        tasks, points = curve(data["rows"], method)
    except (OSError, ValueError, KeyError, TypeError) as error:
        sys.stderr.write(f"make_quality_curve.py: {sys.argv[1]}: {error}\n")
        return 1
    provenance = (f"scripts/make_quality_curve.py: score of {method} over that of the whole cache, mean over the tasks "
                  f"{', '.join(tasks)}; one cache for all queries; measured by kvtier-eval quality")
    print(json.dumps({"provenance": provenance, "points": [{"ratio": r, "quality": q} for r, q in points]}, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
