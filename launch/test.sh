#!/usr/bin/env bash
# The tests, in an environment of their own making.
#   bash launch/test.sh            # fast: under 6 minutes on 2 cores, installation included
#   bash launch/test.sh --all      # also slow, aot (compiled for TPUs and GPUs), peer (torch, transformers, lm-eval …) and,
#                                  # with LM_REAL_DATA=DIR, real-data tests
# Other arguments go to pytest.
set -euo pipefail
source "$(dirname "$0")/venv.sh"
cd "$root"

workers=2
fast="not slow and not real_data and not peer and not aot"
if [ "${1:-}" = "--all" ]; then
  shift
  install "test,peer,log,eval,s3,tpu,launch,scale-out"
  # To compile for GPUs, JAX's own plugin is enough: no CUDA, which the extra gpu would bring.
  jax="$("$VENV/bin/python" -c 'import importlib.metadata as m; print(m.version("jax"))')"
  "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps \
    "jax-cuda13-plugin==$jax" "jax-cuda13-pjrt==$jax"
  select=""
  workers=3  # many of these wait: for other processes, for a deadline, for an installation
  if [ -z "${LM_REAL_DATA:-}" ]; then
    echo "LM_REAL_DATA is not set: leaving out the tests that read real corpora" >&2
    select="not real_data"
  fi
else
  install "test"
  select="$fast"
fi
"$VENV/bin/ruff" check .
"$VENV/bin/ruff" format --check .
# Files as they come, not those with many tests first: the few that wait for minutes must not be left to the end.
exec "$VENV/bin/python" -m pytest -n "$workers" --dist loadfile --no-loadscope-reorder -m "$select" "$@"
