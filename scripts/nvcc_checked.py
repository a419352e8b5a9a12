#!/usr/bin/env python3
"""Runs nvcc and reads what `-Xptxas -v` says about each kernel: a spilled register fails the build,
as do more registers than the kernel's row in a table allows, and a stack in a kernel of the table.

    nvcc_checked.py TABLE NVCC [ARGUMENT...]    a compiler launcher (cmake/Cuda.cmake)
    nvcc_checked.py --self-test

TABLE has a row per hot kernel, `FILE KERNEL REGISTERS`: the .cu file it is compiled in, the name of
its function (all instances of a template), and the most registers that one of them may use on any
architecture. A stack is memory per thread, mostly an array that did not become registers: hot kernels
have none. Each kernel of a file must have been compiled: a row for one that is gone fails, too.
Lines of ptxas that say nothing new are not shown; KVTIER_PTXAS=1 in the environment shows all.
"""

import os
import re
import subprocess
import sys

ENTRY = re.compile(r"ptxas info\s+: Compiling entry function '(\S+)' for '(\w+)'")
SPILLS = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
REGISTERS = re.compile(r"ptxas info\s+: Used (\d+) registers")
NOISE = re.compile(r"ptxas info|bytes stack frame|^\s*$")


def read_table(text, source):
    """{kernel: registers} of one source file (its last path component)."""
    limits = {}
    for line in text.splitlines():
        words = line.split("#", 1)[0].split()
        if words and words[0] == source:
            limits[words[1]] = int(words[2])
    return limits


def kernels(log):
    """Yields (mangled name, architecture, registers, spilled bytes, bytes of stack), both with those
    of functions that it calls."""
    name = architecture = None
    spilled = stack = 0
    for line in log.splitlines():
        if match := ENTRY.search(line):
            name, architecture = match.groups()
            spilled = stack = 0
        elif match := SPILLS.search(line):
            stack += int(match.group(1))
            spilled += int(match.group(2)) + int(match.group(3))
        elif (match := REGISTERS.search(line)) and name is not None:
            yield name, architecture, int(match.group(1)), spilled, stack
            name = None


def is_instance(mangled, kernel):
    return f"{len(kernel)}{kernel}" in mangled


def check(log, limits, assembled=True):
    """Yields what is wrong."""
    seen = set()
    for name, architecture, registers, spilled, stack in kernels(log):
        if spilled > 0:
            yield f"{name} spills {spilled} bytes on {architecture}"
        for kernel, limit in limits.items():
            if is_instance(name, kernel):
                seen.add(kernel)
                if stack > 0:
                    yield f"{name} has {stack} bytes of stack on {architecture}, and may have none"
                if registers > limit:
                    yield f"{name} uses {registers} registers on {architecture}, its limit is {limit}"
    if assembled:
        for kernel in limits.keys() - seen:
            yield f"no kernel {kernel} was compiled: its row in the table is out of date"


def source_of(arguments):
    """The .cu file that this call compiles, or None (linking, asking for the version)."""
    files = [a for a in arguments if a.endswith(".cu")]
    return os.path.basename(files[-1]) if files and "-c" in arguments else None


def run(table, command):
    # A scan of dependencies alone (-MM) or a failure assembles nothing.
    result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                            check=False)
    show_all = os.environ.get("KVTIER_PTXAS", "") not in ("", "0")
    for line in result.stdout.splitlines():
        if show_all or not NOISE.search(line):
            print(line)
    source = source_of(command)
    if result.returncode != 0 or source is None:
        return result.returncode
    with open(table, encoding="utf-8") as file:
        limits = read_table(file.read(), source)
    errors = list(check(result.stdout, limits))
    for error in errors:
        print(f"{source}: error: {error}")
    if not errors:
        return 0
    if "-o" in command:  # Or the next build would take the object as good.
        try:
            os.unlink(command[command.index("-o") + 1])
        except FileNotFoundError:
            pass
    return 1


SAMPLE = """ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_ZN6kvtier9AddKernelEv' for 'sm_80'
ptxas info    : Function properties for _ZN6kvtier9AddKernelEv
    {2} bytes stack frame, {0} bytes spill stores, {0} bytes spill loads
ptxas info    : Used {1} registers, used 0 barriers, 400 bytes cmem[0]
"""


def self_test():
    table = "# comment\na.cu AddKernel 40  # why\nb.cu OtherKernel 10\n"
    limits = read_table(table, "a.cu")
    assert limits == {"AddKernel": 40}, limits
    assert not list(check(SAMPLE.format(0, 40, 0), limits))
    assert "spills 16 bytes" in list(check(SAMPLE.format(8, 40, 0), limits))[0]
    assert "spills" in list(check(SAMPLE.format(8, 40, 0), {}))[0]
    assert "limit is 40" in list(check(SAMPLE.format(0, 41, 0), limits))[0]
    assert "16 bytes of stack" in list(check(SAMPLE.format(0, 40, 16), limits))[0]
    assert not list(check(SAMPLE.format(0, 40, 16), {})), "a kernel that is not hot may have one"
    assert "out of date" in list(check("", limits))[0]
    assert not is_instance("_ZN6kvtier12BigAddKernelEv", "AddKernel")
    assert source_of(["nvcc", "-c", "x/a.cu", "-o", "a.o"]) == "a.cu"
    assert source_of(["nvcc", "--version"]) is None
    print("nvcc_checked: self-test ok")
    return 0


def main():
    if sys.argv[1:] == ["--self-test"]:
        return self_test()
    if len(sys.argv) < 3:
        print(__doc__)
        return 2
    return run(sys.argv[1], sys.argv[2:])


if __name__ == "__main__":
    sys.exit(main())
