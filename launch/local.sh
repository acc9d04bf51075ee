#!/usr/bin/env bash
# The main job on this machine: sets up a virtual environment, then trains a small model end to end into runs/.
#   bash launch/local.sh                                        # experiments/tiny.py into runs/tiny
#   bash launch/local.sh experiments/shakespeare.py --config.data.path=input.txt
set -euo pipefail
source "$(dirname "$0")/venv.sh"
install ""

config="${1:-$root/experiments/tiny.py}"
[ $# -eq 0 ] || shift
exec "$VENV/bin/lm" train --config "$config" --workdir "$root/runs/$(basename "$config" .py)" "$@"
