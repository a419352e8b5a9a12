#!/usr/bin/env bash
# Installs what is missing, configures and builds.
#
#   scripts/build.sh [PRESET] [TARGET...]   PRESET: dev (default), release, asan, ubsan, tsan, fuzz, cuda
#
# KVTIER_SKIP_DEPS=1 leaves the system's packages alone; KVTIER_JOBS sets the number of jobs.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

case "${1:-}" in -h | --help) sed -n '2,6s/^# \{0,1\}//p' "scripts/build.sh"; exit 0 ;; esac
preset=${1:-dev}
shift || true
jobs=${KVTIER_JOBS:-$(nproc)}

if [[ -z "${KVTIER_SKIP_DEPS:-}" ]]; then scripts/install-deps.sh; fi

# Clones of this repository share what ccache holds, wherever they are.
export CCACHE_BASEDIR=$PWD CCACHE_NOHASHDIR=1
# A log needs the warnings and errors, not a line for each file.
quiet=()
if [[ ! -t 1 ]]; then quiet=(-- --quiet); fi

started=$SECONDS
# Configuring again costs a second and picks up new files and changed presets.
log=$(mktemp)
trap 'rm -f "$log"' EXIT
if ! cmake --preset "$preset" > "$log" 2>&1; then
  cat "$log"
  exit 1
fi
cmake --build --preset "$preset" -j "$jobs" ${1+--target "$@"} ${quiet[@]+"${quiet[@]}"}
echo "build: $preset done in $((SECONDS - started)) s; programs are in build/$preset/bin/"
