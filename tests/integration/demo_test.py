#!/usr/bin/env python3
"""Runs scripts/demo.sh with the programs of one build and checks what it promises.

    demo_test.py BIN_DIR

With the default document the last line must parse and hold the project's claim: at ratio 0.3 KVzip
loses at most 2 % of the questions against the full cache, random eviction and SnapKV lose at least
20 %, and the worker prefilled nothing. Files that cannot be used are refused with the reason;
whatever happens, no process is left.
"""

import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import xml.etree.ElementTree

ROOT = pathlib.Path(__file__).resolve().parents[2]
DEMO = ROOT / "scripts" / "demo.sh"
failures = []


def expect(condition, message):
    if not condition:
        failures.append(message)
        print(f"demo_test: {message}", flush=True)


def run(bin_dir, *arguments, keep=""):
    environment = dict(os.environ, KVTIER_SKIP_BUILD="1", KVTIER_BIN_DIR=bin_dir,
                       KVTIER_DEMO_KEEP=keep)
    done = subprocess.run([DEMO, *arguments], env=environment, stdin=subprocess.DEVNULL,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    print(done.stdout, flush=True)
    return done.returncode, done.stdout.splitlines()


def check_picture(path):
    """The picture in docs/choosing_a_ratio.md is made by the demo: a heat map and both curves."""
    root = xml.etree.ElementTree.parse(path).getroot()
    titles = [e.text for e in root.iter("{http://www.w3.org/2000/svg}title")]
    for what in ("layer ", "of the score mass", "of the tokens repeated"):
        expect(any(what in title for title in titles), f"{path}: nothing says '{what}'")


def check_demo(bin_dir):
    with tempfile.TemporaryDirectory() as keep:
        status, lines = run(bin_dir, keep=keep)
        check_picture(pathlib.Path(keep, "object.svg"))
    expect(status == 0, f"exit status {status}")
    last = lines[-1] if lines else ""
    expect(last.startswith("demo: ok "), "the last line is not `demo: ok {...}`")
    if failures:
        return
    result = json.loads(last.removeprefix("demo: ok "))
    expect(set(result) == {"document", "tokens", "dense_bytes", "questions", "full",
                           "prefilled_context_tokens", "rows"}, f"keys {sorted(result)}")
    expect(result["prefilled_context_tokens"] == 0, "the worker prefilled context")
    expect(result["questions"] == 200, f"{result['questions']} questions")
    expect(result["full"] >= 0.9 * result["questions"], "the model cannot answer: no comparison")
    rows = {row["ratio"]: row for row in result["rows"]}
    expect(list(rows) == [1.0, 0.6, 0.3, 0.1], f"ratios {list(rows)}")
    for row in result["rows"]:
        expect(set(row) == {"ratio", "bytes", "fetch_ms", "kvzip", "random", "snapkv"},
               f"row keys {sorted(row)}")
        expect(row["fetch_ms"] > 0, f"ratio {row['ratio']} was not fetched")
        # Positions and scores travel with the rows: a few percent beside keys and values.
        expect(row["bytes"] <= (row["ratio"] + 0.05) * result["dense_bytes"],
               f"ratio {row['ratio']} has {row['bytes']} bytes")
    full = result["full"]
    expect(rows[1.0]["kvzip"] == full, "ratio 1 differs from the dense decoder")
    expect(rows[0.3]["kvzip"] >= 0.98 * full, "KVzip loses more than 2 % at 0.3")
    for method in ("random", "snapkv"):
        expect(rows[0.3][method] <= 0.8 * full, f"{method} loses less than 20 % at 0.3")


def check_refusals(bin_dir):
    with tempfile.TemporaryDirectory() as folder:
        empty = pathlib.Path(folder, "empty.txt")
        empty.touch()
        huge = pathlib.Path(folder, "huge.txt")
        huge.write_bytes(b"all work and no play \n" * 5000)
        for path, reason in ((empty, "is empty"), (pathlib.Path(folder), "cannot read"),
                             (pathlib.Path(folder, "missing"), "cannot read"),
                             (huge, "longer than the limit of")):
            status, lines = run(bin_dir, str(path))
            expect(status == 1, f"{path.name}: exit status {status}")
            expect(any(reason in line and str(path) in line for line in lines),
                   f"{path.name}: no line says '{reason}'")


def check_interrupt(bin_dir):
    """Ctrl-C in the middle of the compression: the whole foreground group gets SIGINT."""
    environment = dict(os.environ, KVTIER_SKIP_BUILD="1", KVTIER_BIN_DIR=bin_dir)
    with subprocess.Popen([DEMO], env=environment, stdin=subprocess.DEVNULL,
                          stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
                          start_new_session=True) as demo:
        for line in demo.stdout:
            if line.startswith("== compress"):
                break
        os.killpg(demo.pid, signal.SIGINT)
        demo.stdout.read()
        expect(demo.wait(timeout=60) == 130, f"exit status {demo.returncode} after SIGINT")


def check_nothing_left(bin_dir):
    """No server of this build is still there."""
    for entry in pathlib.Path("/proc").iterdir():
        try:
            program = os.readlink(entry / "exe") if entry.name.isdigit() else ""
            words = (entry / "cmdline").read_bytes() if program else b""
        except OSError:
            continue  # It ended, or is not ours.
        expect(not (program.startswith(bin_dir) and b"kvtier-demo." in words),
               f"process {entry.name} still runs: {program}")


def main():
    bin_dir = os.path.realpath(sys.argv[1])
    check_refusals(bin_dir)
    check_interrupt(bin_dir)
    check_demo(bin_dir)
    check_nothing_left(bin_dir)
    print(f"demo_test: {len(failures)} failures")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
