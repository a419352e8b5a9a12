#!/usr/bin/env python3
"""Checks that every #include respects the layers (docs/architecture.md).

    base <- kvcache <- compressor <- cuda
                    <- store
    services -> all of the above and proto; tests and bench -> everything

A folder includes only folders below it, and a third-party header only where the tables below allow
it. A header that no table knows is an error too: adding a dependency is a decision.

    check_layers.py [ROOT]     check a tree (default: this repository)
    check_layers.py --self-test
"""

import fnmatch
import pathlib
import re
import sys
import tempfile

# Which of our folders a folder may include, besides itself.
LAYERS = {
    "base": [],
    "kvcache": ["base"],
    "compressor": ["base", "kvcache"],
    "store": ["base", "kvcache"],
    "cuda": ["base", "kvcache", "compressor"],
    "services": ["base", "kvcache", "compressor", "store", "cuda"],
    "bench": ["base", "kvcache", "compressor", "store", "cuda", "services"],
    "tests": ["base", "kvcache", "compressor", "store", "cuda", "services", "bench"],
}

TESTS = ["tests/*", "bench/*"]

# (name, include pattern, files that may include it). The first matching row decides, so special
# rows come before general ones. Headers of ours expose no third party but abseil; services/ and
# cuda/ may, because nothing is above them.
THIRD_PARTY = [
    ("test matchers", r"base/status_matchers\.h", ["tests/*", "base/status_matchers.*"]),
    ("abseil", r"absl/", ["*"]),
    ("generated proto", r"kvtier/v\d+/.*\.pb\.h", ["services/*"] + TESTS),
    ("protobuf", r"google/", ["services/*"] + TESTS),
    ("gRPC", r"(grpc|grpcpp|grpc\+\+)/", ["services/*"] + TESTS),
    ("prometheus-cpp", r"prometheus/", ["services/*"] + TESTS),
    ("RocksDB", r"rocksdb/", ["store/rocksdb_*.cc"] + TESTS),
    ("OpenSSL", r"openssl/", ["kvcache/sha256.cc", "services/*"] + TESTS),
    ("CUDA", r"(cuda(?!/)|cublas|cudnn|nccl|curand|nvml|cub/|thrust/|cooperative_groups)",
     ["cuda/*", "tests/gpu/*", "bench/kernels/*"]),
    ("spdlog", r"(spdlog|fmt)/", ["base/log.*"]),
    ("nlohmann-json", r"nlohmann/", ["*.cc", "services/*"] + TESTS),
    ("oneDNN", r"(oneapi/)?dnnl", ["compressor/*.cc", "bench/*"]),
    ("ISA-L", r"(isa-l/|isa-l\.h|crc\.h)", ["base/crc32c.cc", "bench/*"]),
    ("hiredis", r"hiredis/", ["bench/*"]),
    ("zstd", r"zstd\w*\.h", ["bench/*"]),
    ("GoogleTest", r"(gtest|gmock)/", ["tests/*", "base/status_matchers.*"]),
]

# The C++ library has no dot in its names; of C and POSIX this much is used freely.
STANDARD = re.compile(
    r"[a-z0-9_]+$"
    r"|(sys|netinet|arpa|linux|asm|net)/[\w/]+\.h$"
    r"|(assert|ctype|dlfcn|errno|fcntl|fenv|float|getopt|glob|inttypes|libgen|limits|locale|malloc|math"
    r"|netdb|poll|pthread|sched|setjmp|signal|spawn|stdarg|stddef|stdint|stdio|stdlib|string|strings"
    r"|syscall|termios|time|ucontext|unistd|cxxabi|execinfo|semaphore)\.h$"
    r"|(\w*intrin|cpuid|arm_neon)\.h$")

INCLUDE = re.compile(r'^\s*#\s*include\s*(?:"([^"]+)"|<([^>]+)>)')
SUFFIXES = {".h", ".cc", ".cu", ".cuh"}


def check_include(path, target, quoted):
    """Returns what is wrong with `path` (relative, posix) including `target`, or None."""
    folder = path.split("/", 1)[0]
    if quoted and (target.startswith(".") or "/" not in target):
        return "our headers are named from the repository root"
    for name, pattern, allowed in THIRD_PARTY:
        if re.match(pattern, target):
            if any(fnmatch.fnmatch(path, glob) for glob in allowed):
                return None
            return f"{name} is allowed only in: {', '.join(allowed)}"
    top = target.split("/", 1)[0]
    if top in LAYERS:
        if top == folder or top in LAYERS[folder]:
            return None
        return f"{folder}/ may not include {top}/"
    if not quoted and STANDARD.match(target):
        return None
    return "unknown header: add a row to THIRD_PARTY in scripts/check_layers.py"


def check_tree(root):
    errors = []
    for folder in LAYERS:
        for file in sorted((root / folder).rglob("*")):
            # compile_fail holds code that must not build; it obeys no rule.
            if file.suffix not in SUFFIXES or "compile_fail" in file.parts:
                continue
            path = file.relative_to(root).as_posix()
            for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
                match = INCLUDE.match(line)
                if not match:
                    continue
                target = match.group(1) or match.group(2)
                error = check_include(path, target, quoted=bool(match.group(1)))
                if error:
                    errors.append(f"{path}:{number}: {target}: {error}")
    return errors


# (file, include line, allowed)
SELF_TEST = [
    ("base/a.h", '"absl/status/status.h"', True),
    ("base/a.h", "<vector>", True),
    ("base/a.cc", "<sys/mman.h>", True),
    ("base/a.h", '"kvcache/key.h"', False),
    ("base/log.cc", '"spdlog/spdlog.h"', True),
    ("base/clock.cc", "<spdlog/spdlog.h>", False),
    ("kvcache/sha256.cc", "<openssl/evp.h>", True),
    ("kvcache/key.cc", "<openssl/evp.h>", False),
    ("kvcache/key.h", '"store/tier.h"', False),
    ("kvcache/key.h", '"key.h"', False),
    ("kvcache/key.h", '"../base/clock.h"', False),
    ("compressor/a.cc", '"kvcache/key.h"', True),
    ("compressor/a.cc", '"store/tier.h"', False),
    ("compressor/a.cc", "<dnnl.hpp>", True),
    ("compressor/a.h", "<dnnl.hpp>", False),
    ("compressor/config.cc", "<nlohmann/json.hpp>", True),
    ("compressor/config.h", "<nlohmann/json.hpp>", False),
    ("services/ctl/output.h", "<nlohmann/json.hpp>", True),
    ("compressor/a.cc", "<cuda_runtime.h>", False),
    ("compressor/a.cc", '"cuda/cuda_backend.h"', False),
    ("cuda/a.cu", "<cuda_runtime.h>", True),
    ("cuda/a.cu", '"store/tier.h"', False),
    ("cuda/a.cc", '"cuda/simt.h"', True),
    ("services/a.cc", '"cuda/simt.h"', True),
    ("services/a.cc", "<cuda_runtime.h>", False),
    ("store/rocksdb_tier.cc", "<rocksdb/db.h>", True),
    ("store/rocksdb_tier.h", "<rocksdb/db.h>", False),
    ("store/host_tier.cc", "<rocksdb/db.h>", False),
    ("store/a.cc", '"compressor/pipeline.h"', False),
    ("store/a.cc", "<grpcpp/grpcpp.h>", False),
    ("store/a.cc", "<prometheus/counter.h>", False),
    ("store/a.cc", '"kvtier/v1/store.pb.h"', False),
    ("services/a.h", "<grpcpp/grpcpp.h>", True),
    ("services/a.h", '"kvtier/v1/store.grpc.pb.h"', True),
    ("services/a.cc", '"store/tier.h"', True),
    ("services/a.cc", '"base/status_matchers.h"', False),
    ("services/a.cc", '"tests/testing/fake.h"', False),
    ("services/a.cc", "<boost/asio.hpp>", False),
    ("tests/unit/store/a_test.cc", "<gtest/gtest.h>", True),
    ("store/a.cc", "<gtest/gtest.h>", False),
    ("bench/a.cc", "<zstd.h>", True),
    ("kvcache/a_codec.cc", "<zstd.h>", False),
    ("bench/a.cc", "<benchmark/benchmark.h>", False),
]


def self_test():
    """Writes each line into a tree of its own, so the whole path is exercised."""
    failures = 0
    for path, target, allowed in SELF_TEST:
        with tempfile.TemporaryDirectory() as folder:
            file = pathlib.Path(folder, path)
            file.parent.mkdir(parents=True)
            file.write_text(f"// A comment.\n  # include {target}  // reason\n", encoding="utf-8")
            errors = check_tree(pathlib.Path(folder))
        if (not errors) != allowed:
            failures += 1
            print(f"self-test: {path} including {target}: allowed={allowed}, got {errors}")
    print(f"self-test: {len(SELF_TEST)} cases, {failures} wrong")
    return failures


def main():
    if sys.argv[1:] == ["--self-test"]:
        return 1 if self_test() else 0
    root = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else pathlib.Path(__file__).parent.parent)
    errors = check_tree(root.resolve())
    print("\n".join(errors) if errors else "layers: ok")
    return 1 if errors else 0


if __name__ == "__main__":
    sys.exit(main())
