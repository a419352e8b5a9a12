#!/usr/bin/env bash
# Formats our C++ with clang-format 14, or with --check only says what is not formatted.
#
#   scripts/format.sh [--check] [FILE...]     default: every C++ file of ours
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# Another version formats some constructs differently, so there is no fallback to `clang-format`.
command -v clang-format-14 > /dev/null || {
  echo "format: clang-format-14 is missing: scripts/install-deps.sh"
  exit 1
}
mode=(-i)
if [[ "${1:-}" == --check ]]; then
  mode=(--dry-run -Werror)
  shift
fi

all_files() {
  local folder
  for folder in base kvcache compressor store cuda services tests bench; do
    if [[ -d "$folder" ]]; then
      find "$folder" -type f \( -name '*.h' -o -name '*.cc' -o -name '*.cu' -o -name '*.cuh' \) -print0
    fi
  done
}
if [[ $# -gt 0 ]]; then printf '%s\0' "$@"; else all_files; fi |
  xargs -0 -r -n 32 -P "$(nproc)" clang-format-14 "${mode[@]}"
