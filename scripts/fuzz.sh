#!/usr/bin/env bash
# Fuzzes with libFuzzer, ASan and UBSan (clang 14), starting from the committed corpora.
#
#   scripts/fuzz.sh TARGET... [SECONDS]   TARGET: fuzz_checkpoint, ...; SECONDS for each: 60 if not given
#
# Several targets run as many at a time as there are processors, each with a log in build/fuzz/logs/.
# New inputs stay in build/fuzz/new/TARGET and are the start of the next run; an input that fails is
# written to build/fuzz/findings/ and named. Fix what it shows, then add it to tests/fuzz/corpus/TARGET.
# KVTIER_SKIP_DEPS and KVTIER_JOBS as for scripts/build.sh; KVTIER_JOBS also limits how many run at a time.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

usage() { sed -n '2,9s/^# \{0,1\}//p' "scripts/fuzz.sh"; }
case "${1:-}" in -h | --help) usage; exit 0 ;; esac
targets=("$@")
seconds=60
if ((${#targets[@]} > 0)) && [[ "${targets[-1]}" =~ ^[0-9] ]]; then
  seconds=${targets[-1]}
  unset 'targets[-1]'
fi
known=1
for target in "${targets[@]}"; do
  if [[ -z "$target" || ! -d "tests/fuzz/corpus/$target" ]]; then known=0; fi
done
if ((${#targets[@]} == 0 || known == 0)) || [[ ! "$seconds" =~ ^[1-9][0-9]*$ ]]; then
  echo "fuzz.sh: no such target or time: '${targets[*]}' '$seconds'; targets:" tests/fuzz/corpus/* >&2
  exit 2
fi

scripts/build.sh fuzz "${targets[@]}"
mkdir -p build/fuzz/findings build/fuzz/logs

# fuzz TARGET: inputs are read to the byte; 64 KiB hold every seed. Memory and time per input are
# bounded, so that a small file which costs much is a finding too.
fuzz() {
  mkdir -p "build/fuzz/new/$1"
  ASAN_OPTIONS=strict_string_checks=1:detect_stack_use_after_return=1 \
    UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1 \
    "build/fuzz/bin/$1" -max_total_time="$seconds" -max_len=65536 -timeout=10 -rss_limit_mb=2048 \
    -print_final_stats=1 -artifact_prefix="build/fuzz/findings/$1-" \
    "build/fuzz/new/$1" "tests/fuzz/corpus/$1"
}

if ((${#targets[@]} == 1)); then
  fuzz "${targets[0]}"
  echo "fuzz: ${targets[0]} found nothing in $seconds s"
  exit 0
fi

# Waits for one of the runs to end; those that are left go on when one has failed.
running=0
failed=0
await_one() {
  wait -n || failed=1
  running=$((running - 1))
}
for target in "${targets[@]}"; do
  if ((running >= ${KVTIER_JOBS:-$(nproc)})); then await_one; fi
  log=build/fuzz/logs/$target
  (if fuzz "$target" > "$log" 2>&1; then
    grep -E '^stat::(number_of_executed_units|new_units_added)' "$log" | sed "s/^stat::/$target: /"
    echo "fuzz: $target found nothing in $seconds s"
  else
    tail -n 60 "$log"
    echo "fuzz: $target FAILED: $log" >&2
    exit 1
  fi) &
  running=$((running + 1))
done
while ((running > 0)); do await_one; done
exit "$failed"
