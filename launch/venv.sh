# Sourced by the scripts beside it: makes a virtual environment once and installs this project into it.
# VENV=DIR chooses where (default .venv in the repository), PYTHON=… with which interpreter.

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
VENV="${VENV:-$root/.venv}"

# install EXTRAS: installs this project with them unless exactly that was installed before.
install() {
  local wanted stamp="$VENV/.installed"
  wanted="$(cat "$root/requirements.txt" "$root/pyproject.toml" | cksum) $1"
  [ -x "$VENV/bin/python" ] || "${PYTHON:-python3}" -m venv "$VENV"
  "$VENV/bin/python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    { echo "Python 3.11 or newer is needed; set PYTHON=python3.11 and remove $VENV." >&2; exit 2; }
  if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
    echo "installing into $VENV (a minute or two, once)" >&2
    "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check --editable "$root${1:+[$1]}"
    echo "$wanted" > "$stamp"
  fi
}
