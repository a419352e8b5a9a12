#!/usr/bin/env bash
# Installs what kvtier-bench compares with, on Debian 12 or Ubuntu 24.04: Redis 7 and hiredis. Redis's
# own service is not started: the benchmark starts a server for itself. Safe to repeat. Build
# kvtier-bench again afterwards: it is linked with hiredis where that is there.
#
#   scripts/bench-deps.sh            install what is missing (as root, or through sudo)
#   scripts/bench-deps.sh --check    print what is missing; exit 1 if anything is
set -euo pipefail

packages=(redis-server libhiredis-dev)

say() { printf 'bench-deps: %s\n' "$*"; }

check_only=0
for argument in "$@"; do
  case "$argument" in
    --check) check_only=1 ;;
    -h | --help) sed -n '2,7s/^# \{0,1\}//p' "$0"; exit 0 ;;
    *) say "unknown option: $argument (try --help)"; exit 2 ;;
  esac
done

missing=()
for package in "${packages[@]}"; do
  status=$(dpkg-query -W -f='${db:Status-Status}' "$package" 2> /dev/null || true)
  [[ "$status" == installed ]] || missing+=("$package")
done
if [[ ${#missing[@]} -eq 0 ]]; then
  say "nothing is missing (${#packages[@]} packages)"
  exit 0
fi
say "missing: ${missing[*]}"
if ((check_only)); then exit 1; fi

run_as_root=()
if [[ $EUID -ne 0 ]]; then
  command -v sudo > /dev/null || { say "not root and no sudo: run this script as root"; exit 1; }
  run_as_root=(sudo)
fi
# A mask made here keeps the package from starting its service, and goes again; one of the
# administrator's stays.
unit=/etc/systemd/system/redis-server.service
masked=0
unmask() { if ((masked)); then ${run_as_root[@]+"${run_as_root[@]}"} rm -f "$unit"; fi; }
trap unmask EXIT
if [[ -d /run/systemd/system && ! -e "$unit" && ! -L "$unit" ]]; then
  ${run_as_root[@]+"${run_as_root[@]}"} ln -s /dev/null "$unit"
  masked=1
fi
apt() {
  # DEBIAN_FRONTEND and RUNLEVEL must pass through sudo, hence env. RUNLEVEL 1: no init scripts run.
  ${run_as_root[@]+"${run_as_root[@]}"} env DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 apt-get "$@"
}
apt update -q
apt install -q -y --no-install-recommends "${missing[@]}"
say "done"
