#!/usr/bin/env bash
# ./spark-submit.sh [spark-submit options] JOB [job options]
#
# Finds the Python to run with (SEEDLINGS_PYTHON, or .venv, which the first call makes) and leaves all else to
# seedlings_spark.cli.launch.
set -euo pipefail

here=${BASH_SOURCE[0]}
while [ -L "$here" ]; do # the script itself, should it be called by a link
  link=$(readlink "$here")
  case $link in /*) here=$link ;; *) here=$(dirname "$here")/$link ;; esac
done
home=$(CDPATH='' cd -- "$(dirname -- "$here")" && pwd)
constraints=conf/constraints.txt
given=" $* "
export PYTHONUTF8=1

fail() { # found, expected, what to do
  local said="$1. Expected $2. $3."
  case $given in
  *" --log json "* | *" --log=json "*)
    said=${said//\\/\\\\} said=${said//\"/\\\"} said=${said//[[:cntrl:]]/ }
    printf '{"ts": "%s", "level": "ERROR", "msg": "%s", "run": "", "exit_code": 1}\n' \
      "$(date -u +%Y-%m-%dT%H:%M:%S.000+00:00)" "$said" >&2 ;;
  *) printf 'spark-submit.sh: %s\n' "$said" >&2 ;;
  esac
  exit 1
}

# .venv, set up whenever what it is made from has changed.
set_up() {
  local stamp=$home/.venv/installed wanted base clear=''
  wanted=$( (echo "$home" && cat "$home/pyproject.toml" "$home/$constraints") | cksum)
  "$python" -c '' 2>/dev/null || clear=--clear
  if [ -z "$clear" ] && [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ]; then return; fi
  base=$(command -v python3.11 || command -v python3 || true)
  if [ -z "$base" ] || ! "$base" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))'; then
    fail "${base:-no python3} on the PATH" "Python 3.11" "Install it, or set SEEDLINGS_PYTHON to the path of one"
  fi
  (
    # Two first calls at once: the second waits and finds the work done.
    if command -v flock >/dev/null; then flock 9; fi
    if [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ] && "$python" -c '' 2>/dev/null; then exit 0; fi
    echo "setting up $home/.venv (once, some minutes)" >&2
    # One chain: `set -e` does not hold in what stands before `||`.
    cd "$home" && "$base" -m venv ${clear:+"$clear"} .venv &&
      "$python" -m pip install --quiet --disable-pip-version-check --constraint "$constraints" \
        --editable '.[dev]' >&2 &&
      echo "$wanted" >"$stamp"
  ) 9>"$home/.venv.lock" || fail "the set-up of $home/.venv failed" "pip to install what pyproject.toml names" \
    "See the message above; the next call tries again"
}

# What a machine has to say that nothing is installed on yet.
case $* in
'') cat "$home/seedlings_spark/cli/usage.txt" >&2; exit 2 ;;
-h | --help | help) cat "$home/seedlings_spark/cli/usage.txt"; exit 0 ;;
esac

if [ -n "${SEEDLINGS_PYTHON:-}" ]; then
  python=$(command -v "$SEEDLINGS_PYTHON") || fail "no program SEEDLINGS_PYTHON=$SEEDLINGS_PYTHON" \
    "the path of a Python 3.11" "Correct it, or unset it to let .venv be made"
  case $python in /*) ;; *) python=$PWD/$python ;; esac
else
  python=$home/.venv/bin/python
  set_up
fi
# Nothing is imported: that would take seconds.
problem=$("$python" -c '
import sys
from importlib.util import find_spec
if sys.version_info[:2] != (3, 11):
    sys.exit("Python %d.%d" % sys.version_info[:2])
missing = [name for name in ("pyspark", "elephas", "tensorflow", "PIL") if find_spec(name) is None]
if missing:
    sys.exit("a Python without " + ", ".join(missing))
' 2>&1) || case ${problem##*$'\n'} in
"Python 3."* | "Python 2."*) # no pip helps there
  fail "$python, which is ${problem##*$'\n'}" "Python 3.11, which the versions of $constraints are for" \
    "Install it and unset SEEDLINGS_PYTHON, or name the path of one" ;;
*)
  problem=${problem##*$'\n'}
  fail "$python, which is ${problem:-no Python}" "a Python 3.11 with the packages of pyproject.toml" \
    "Install them with $python -m pip install -c $home/$constraints $home, or unset SEEDLINGS_PYTHON" ;;
esac

PYTHONPATH=$home${PYTHONPATH:+:$PYTHONPATH} exec "$python" -P -m seedlings_spark.cli.launch "$python" "$@"
