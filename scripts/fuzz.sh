#!/usr/bin/env bash
# Fuzzes one target with libFuzzer, ASan and UBSan (clang 14), starting from its committed corpus.
#
#   scripts/fuzz.sh TARGET [SECONDS]   TARGET: fuzz_checkpoint, ...; SECONDS: 60 if not given
#
# New inputs stay in build/fuzz/new/TARGET and are the start of the next run; an input that fails is
# written to build/fuzz/findings/ and named. Fix what it shows, then add it to tests/fuzz/corpus/TARGET.
# KVTIER_SKIP_DEPS and KVTIER_JOBS as for scripts/build.sh.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

usage() { sed -n '2,8s/^# \{0,1\}//p' "scripts/fuzz.sh"; }
case "${1:-}" in -h | --help) usage; exit 0 ;; esac
target=${1:-}
seconds=${2:-60}
corpus=tests/fuzz/corpus/$target
if [[ -z "$target" || ! -d "$corpus" || ! "$seconds" =~ ^[1-9][0-9]*$ ]]; then
  echo "fuzz.sh: no such target or time: '$target' '$seconds'; targets:" tests/fuzz/corpus/* >&2
  exit 2
fi

scripts/build.sh fuzz "$target"

mkdir -p "build/fuzz/new/$target" build/fuzz/findings
# Inputs are read to the byte; 64 KiB hold every seed. Memory and time per input are bounded, so that
# a small file which costs much is a finding too.
ASAN_OPTIONS=strict_string_checks=1:detect_stack_use_after_return=1 \
  UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1 \
  "build/fuzz/bin/$target" -max_total_time="$seconds" -max_len=65536 -timeout=10 -rss_limit_mb=2048 \
  -print_final_stats=1 -artifact_prefix="build/fuzz/findings/$target-" \
  "build/fuzz/new/$target" "$corpus"
echo "fuzz: $target found nothing in $seconds s"
