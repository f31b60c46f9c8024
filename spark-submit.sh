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

# Which packages are meant: those for the Spark that is asked for, else for that of SPARK_HOME, else the default.
default=4.1
spark=${SEEDLINGS_SPARK_VERSION:-}
if [ -z "$spark" ]; then
  for jar in "${SPARK_HOME:-}"/jars/spark-core_*-*.jar; do
    if [ -e "$jar" ]; then jar=${jar##*/} && spark=${jar#spark-core_*-} && spark=${spark%.jar}; fi
  done
fi
spark=${spark:-$default}
[[ $spark =~ ^([0-9]+\.[0-9]+)([.-]|$) ]] && minor=${BASH_REMATCH[1]} || minor=$spark
constraints=conf/constraints-spark-$minor.txt
elephas="--no-deps --ignore-requires-python elephas==7.3.0" # whose metadata allows older packages only
# One for each choice; .venv without any.
venv=.venv
if [ "$minor" != "$default" ]; then venv=$venv-spark-$minor; fi
if [ -n "${SEEDLINGS_PYTHON_VERSION:-}" ]; then venv=$venv-python-$SEEDLINGS_PYTHON_VERSION; fi

# The first Python on the PATH that is asked for, or that will do.
find_base() {
  local versions=${SEEDLINGS_PYTHON_VERSION:-3.11 3.12 3.13} names=() version
  for version in $versions; do names+=("python$version"); done
  while IFS= read -r base; do
    if "$base" -c 'import sys; sys.exit("%d.%d" % sys.version_info[:2] not in sys.argv[1:])' $versions 2>/dev/null; then
      return
    fi
  done < <(type -ap "${names[@]}" python3)
  fail "no Python ${versions// /, } on the PATH" "Python ${SEEDLINGS_PYTHON_VERSION:-3.11, 3.12 or 3.13}" \
    "Install it, or set SEEDLINGS_PYTHON to the path of one"
}

# .venv, set up whenever what it is made from has changed.
set_up() {
  local stamp=$home/$venv/installed wanted base='' clear=''
  if [ ! -e "$home/$constraints" ]; then
    wanted=SPARK_HOME=${SPARK_HOME:-}
    if [ -n "${SEEDLINGS_SPARK_VERSION:-}" ]; then wanted=SEEDLINGS_SPARK_VERSION=$SEEDLINGS_SPARK_VERSION; fi
    fail "Spark $spark ($wanted)" "one of those that conf/constraints-spark-*.txt are for" \
      "Correct it, or unset it to take Spark $default"
  fi
  wanted=$( (echo "$home" && cat "$home/pyproject.toml" "$home/$constraints") | cksum)
  "$python" -c '' 2>/dev/null || clear=--clear
  if [ -z "$clear" ] && [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ]; then return; fi
  find_base
  (
    # Two first calls at once: the second waits and finds the work done.
    if command -v flock >/dev/null; then flock 9; fi
    if [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ] && "$python" -c '' 2>/dev/null; then exit 0; fi
    echo "setting up $home/$venv (once, some minutes)" >&2
    pip=("$python" -m pip --quiet --disable-pip-version-check install --constraint "$constraints")
    # One chain: `set -e` does not hold in what stands before `||`.
    # shellcheck disable=SC2086 # several words
    cd "$home" && "$base" -m venv ${clear:+"$clear"} "$venv" &&
      "${pip[@]}" --no-warn-conflicts --editable '.[dev]' >&2 &&
      "${pip[@]}" $elephas >&2 &&
      { "$python" -m seedlings_spark.cli.classes 2>/dev/null || true; } && # jobs start later without
      echo "$wanted" >"$stamp"
  ) 9>"$home/$venv.lock" || fail "the set-up of $home/$venv failed" "pip to install what pyproject.toml names" \
    "See the message above; the next call tries again"
}

# What a machine has to say that nothing is installed on yet.
case $* in
'') cat "$home/seedlings_spark/cli/usage.txt" >&2; exit 2 ;;
-h | --help | help) cat "$home/seedlings_spark/cli/usage.txt"; exit 0 ;;
esac

if [ -n "${SEEDLINGS_PYTHON:-}" ]; then
  python=$(command -v "$SEEDLINGS_PYTHON") || fail "no program SEEDLINGS_PYTHON=$SEEDLINGS_PYTHON" \
    "the path of a Python 3.11, 3.12 or 3.13" "Correct it, or unset it to let .venv be made"
  case $python in /*) ;; *) python=$PWD/$python ;; esac
else
  python=$home/$venv/bin/python
  set_up
fi
# Nothing is imported: that would take seconds.
problem=$("$python" -c '
import sys
from importlib.util import find_spec
if not (3, 11) <= sys.version_info[:2] <= (3, 13):
    sys.exit("Python %d.%d" % sys.version_info[:2])
missing = [name for name in ("pyspark", "elephas", "tensorflow", "PIL") if find_spec(name) is None]
if missing:
    sys.exit("a Python without " + ", ".join(missing))
' 2>&1) || case ${problem##*$'\n'} in
"Python 3."* | "Python 2."*) # no pip helps there
  fail "$python, which is ${problem##*$'\n'}" "Python 3.11, 3.12 or 3.13" \
    "Install it and unset SEEDLINGS_PYTHON, or name the path of one" ;;
"a Python without elephas")
  fail "$python, which is a Python without elephas" "Elephas 7.3.0" \
    "Install it with $python -m pip install $elephas" ;;
*)
  problem=${problem##*$'\n'}
  fail "$python, which is ${problem:-no Python}" "a Python with the packages of pyproject.toml, and Elephas" \
    "Install them with $python -m pip install -c $home/$constraints $home and then $python -m pip install $elephas, or unset SEEDLINGS_PYTHON" ;;
esac

PYTHONPATH=$home${PYTHONPATH:+:$PYTHONPATH} exec "$python" -P -m seedlings_spark.cli.launch "$python" "$@"
