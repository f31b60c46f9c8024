#!/usr/bin/env bash
# ./spark-submit.sh [spark-submit options] JOB [job options]
#
# Makes .venv on the first call (SEEDLINGS_PYTHON names another interpreter instead), chooses Spark's settings
# by --master, ships the package to the executors, and runs the job. `test` runs the tests.
set -euo pipefail

home=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
jobs="quickstart prepare train evaluate score models"

fail() { # found, expected, what to do
  printf 'spark-submit.sh: %s. Expected %s. %s.\n' "$1" "$2" "$3" >&2
  exit "${4:-1}"
}

usage() {
  cat <<USAGE
usage: ./spark-submit.sh [spark-submit options] JOB [job options]

  quickstart   draw images, prepare, train, evaluate and score them: two minutes
  prepare      image files -> corpus
  train        corpus -> model version
  evaluate     model version + corpus -> numbers and plots
  score        model version + image files -> predictions
  models       list, promote, roll back, import model versions
  test         run the tests: [--all] [pytest arguments]

./spark-submit.sh JOB --help shows a job's options. Spark's options, such as --master yarn, go before JOB;
without --master a job runs on this machine.
USAGE
}

# The Python to run with: SEEDLINGS_PYTHON as it is, or .venv, made whenever what it is made from has changed.
find_python() {
  if [ -n "${SEEDLINGS_PYTHON:-}" ]; then
    python=$SEEDLINGS_PYTHON
    "$python" -c 'import pyspark, elephas' 2>/dev/null ||
      fail "SEEDLINGS_PYTHON=$python without pyspark and elephas" "an interpreter with the packages of pyproject.toml" \
        "Install them with $python -m pip install -c conf/constraints.txt $home"
    return
  fi
  python=$home/.venv/bin/python
  local stamp wanted base
  stamp=$home/.venv/installed
  wanted=$(cat "$home/pyproject.toml" "$home/conf/constraints.txt" | cksum)
  [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ] && return
  base=$(command -v python3.11 || command -v python3 || true)
  [ -n "$base" ] && "$base" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' ||
    fail "${base:-no python3} on the PATH" "Python 3.11" "Install it, or set SEEDLINGS_PYTHON"
  (
    # Two first calls at once: the second waits and finds the work done.
    if command -v flock >/dev/null; then flock 9; fi
    [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ] && exit 0
    echo "setting up $home/.venv (once, some minutes)" >&2
    "$base" -m venv --clear "$home/.venv"
    "$python" -m pip install --quiet --disable-pip-version-check --constraint "$home/conf/constraints.txt" \
      --editable "$home[dev]" >&2
    echo "$wanted" >"$stamp"
  ) 9>"$home/.venv.lock" || fail "the set-up of .venv failed" "pip to install what pyproject.toml names" \
    "See the message above; a second call tries again"
}

find_java() {
  local java=java
  [ -n "${JAVA_HOME:-}" ] && java=$JAVA_HOME/bin/java
  command -v "$java" >/dev/null 2>&1 ||
    fail "no Java (${JAVA_HOME:+JAVA_HOME=$JAVA_HOME, }java is not on the PATH)" "Java 17" \
      "Install it (for example apt-get install openjdk-17-jre-headless), or set JAVA_HOME"
}

# Options before the job's name go to spark-submit unchanged.
spark_options=()
master=
settings=
job=
while [ $# -gt 0 ]; do
  case $1 in
  -h | --help) usage; exit 0 ;;
  --master) master=${2:-} ;;
  --master=*) master=${1#*=} ;;
  --properties-file | --properties-file=*) settings=own ;;
  esac
  case $1 in
  -v | --verbose | --version | --supervise | --usage-error | --load-spark-defaults | --*=*)
    spark_options+=("$1"); shift ;;
  -*)
    [ $# -ge 2 ] || fail "$1 without a value" "spark-submit options, then a job" "See ./spark-submit.sh --help" 2
    spark_options+=("$1" "$2"); shift 2 ;;
  *) job=$1; shift; break ;;
  esac
done
[ -n "$job" ] || { usage >&2; exit 2; }

if [ "$job" = test ]; then
  find_java
  find_python
  cd "$home"
  folders=(tests/unit tests/keras tests/spark)
  if [ "${1:-}" = --all ]; then
    shift
    folders+=(tests/cluster)
  fi
  for argument in "$@"; do # a path of one's own replaces the folders
    case $argument in tests/*) folders=() ;; esac
  done
  exec "$python" -m pytest "${folders[@]}" "$@"
fi

case " $jobs " in
*" $job "*) ;;
*) fail "no job '$job'" "one of: $jobs test" "See ./spark-submit.sh --help" 2 ;;
esac

find_python
for argument in "$@"; do
  case $argument in -h | --help) PYTHONPATH=$home exec "$python" "$home/jobs/$job.py" --help ;; esac
done
find_java

if [ -z "$settings" ]; then
  case $master in
  yarn*) settings=spark-yarn.conf ;;
  spark://*) settings=spark-standalone.conf ;;
  *) settings=spark-local.conf ;;
  esac
  spark_options=(--properties-file "$home/conf/$settings" --load-spark-defaults "${spark_options[@]}")
fi
[ -n "$master" ] || spark_options=(--master 'local[*]' "${spark_options[@]}")

# On this machine the package is read where it stands; executors elsewhere get it as a zip beside the job.
case $master in
'' | local | 'local['*) export PYTHONPATH=$home${PYTHONPATH:+:$PYTHONPATH} ;;
*)
  shipped=$(mktemp -d)
  trap 'rm -rf "$shipped"' EXIT
  (cd "$home" && "$python" -c '
import pathlib, sys, zipfile
with zipfile.ZipFile(sys.argv[1], "w") as archive:
    for file in sorted(pathlib.Path("seedlings_spark").rglob("*.py")):
        archive.write(file)
' "$shipped/seedlings_spark.zip")
  spark_options=(--py-files "$shipped/seedlings_spark.zip" "${spark_options[@]}")
  ;;
esac

export PYSPARK_PYTHON=${PYSPARK_PYTHON:-$python}
export PYSPARK_DRIVER_PYTHON=${PYSPARK_DRIVER_PYTHON:-$python}
export SPARK_HOME=${SPARK_HOME:-$("$python" -c 'import pyspark, pathlib; print(pathlib.Path(pyspark.__file__).parent)')}
export TF_CPP_MIN_LOG_LEVEL=${TF_CPP_MIN_LOG_LEVEL:-3}

"$SPARK_HOME/bin/spark-submit" \
  --driver-java-options "-Dlog4j2.configurationFile=file:$home/conf/log4j2.properties" \
  "${spark_options[@]}" "$home/jobs/$job.py" "$@"
