#!/usr/bin/env bash
# The main job on this machine: sets up a virtual environment, then trains a small model end to end.
#   bash launch/local.sh                                        # experiments/tiny.py into runs/tiny
#   bash launch/local.sh experiments/shakespeare.py --config.data.path=input.txt
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/venv.sh
install ""

config="${1:-experiments/tiny.py}"
[ $# -eq 0 ] || shift
exec "$VENV/bin/lm" train --config "$config" --workdir "runs/$(basename "$config" .py)" "$@"
