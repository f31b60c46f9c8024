#!/usr/bin/env bash
# ./spark-submit.sh [spark-submit options] JOB [job options]
#
# Makes .venv on the first call (SEEDLINGS_PYTHON names another interpreter instead), chooses Spark's settings
# by --master, ships the package to the executors, and runs the job, or a program of one's own in its place.
# `test` runs the tests.
set -euo pipefail

here=${BASH_SOURCE[0]}
while [ -L "$here" ]; do # the script itself, should it be called by a link
  link=$(readlink "$here")
  case $link in /*) here=$link ;; *) here=$(dirname "$here")/$link ;; esac
done
home=$(CDPATH='' cd -- "$(dirname -- "$here")" && pwd)
# Without UTF-8 (cron, `env -i`) the JVM makes of an `ö` in an argument two `?`, which match other names.
if [ "$(locale charmap 2>/dev/null)" != UTF-8 ]; then
  for utf8 in C.UTF-8 en_US.UTF-8 $(locale -a 2>/dev/null | grep -i 'utf-\{0,1\}8$' 2>/dev/null) C.UTF-8; do
    [ "$(LC_ALL=$utf8 locale charmap 2>/dev/null)" != UTF-8 ] || break
  done
  export LC_ALL=$utf8
fi
export PYTHONUTF8=1
jobs="quickstart prepare train evaluate score models clean benchmark status doctor"

fail() { # found, expected, what to do, exit code
  local said="$1. Expected $2. $3."
  if [ "$(value_of --log ${given[@]+"${given[@]}"})" = json ]; then
    said=${said//\\/\\\\} said=${said//\"/\\\"} said=${said//[[:cntrl:]]/ }
    printf '{"ts": "%s", "level": "ERROR", "msg": "%s", "run": "", "exit_code": %d}\n' \
      "$(date -u +%Y-%m-%dT%H:%M:%S.000+00:00)" "$said" "${4:-1}" >&2
  else
    printf 'spark-submit.sh: %s\n' "$said" >&2
  fi
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
  models       list, promote, roll back, import, delete model versions
  clean        remove what is no longer needed of scores, a run, a corpus or the store: --older-than 30d [--dry-run]
  benchmark    how fast this machine or cluster trains and scores, and how that would scale
  status       how far a run of train is: RUN
  doctor       what on this machine or cluster is in the way of the other jobs
  test         run the tests: [--all] [--yarn] [pytest arguments]
  pack         make dist/environment.tar.gz, the Python packages for machines that have none: [--gpu] [HDFS folder]
  FILE.py      a program of your own, that imports seedlings_spark

./spark-submit.sh JOB --help shows a job's options, ./spark-submit.sh --version what is installed.

Spark's options go before JOB, as in  ./spark-submit.sh --master yarn --num-executors 4 train ...
Without --master a job runs on all cores of this machine. --master also chooses Spark's settings:
conf/spark-local.conf, conf/spark-yarn.conf or conf/spark-standalone.conf, over the site's spark-defaults.conf.
A --properties-file of your own takes their place.

  --archives dist/environment.tar.gz#environment   executors use the packages in it; on YARN the driver in --deploy-mode
                                                   cluster too. Put it on HDFS once, and name it there
  --detach                                         train in the background; its log is RUN/train.log
  --insecure                                       without authentication and encryption of Spark's own connections

The first call makes .venv, which takes some minutes. Environment variables:
  SEEDLINGS_PYTHON   a Python that has everything installed, in place of .venv
  PYSPARK_PYTHON     the Python of executors on other machines, where theirs has another path
  SEEDLINGS_SPARK_SECRET   spark.authenticate.secret of a standalone cluster
  JAVA_HOME          a Java 17, in place of the one on the PATH
USAGE
}

# The Python to run with: SEEDLINGS_PYTHON as it is, or .venv, set up whenever what it is made from has changed.
find_python() {
  if [ -n "${SEEDLINGS_PYTHON:-}" ]; then
    python=$(command -v "$SEEDLINGS_PYTHON") || fail "no program SEEDLINGS_PYTHON=$SEEDLINGS_PYTHON" \
      "the path of a Python 3.11" "Correct it, or unset it to let .venv be made"
    case $python in /*) ;; *) python=$PWD/$python ;; esac
  else
    python=$home/.venv/bin/python
    set_up
  fi
  # Nothing is imported: that would take seconds.
  pyspark=$("$python" -c '
import sys
from importlib.util import find_spec
if sys.version_info[:2] != (3, 11):
    sys.exit("Python %d.%d" % sys.version_info[:2])
found = {name: find_spec(name) for name in ("pyspark", "elephas", "tensorflow", "PIL")}
missing = [name for name in found if found[name] is None]
if missing:
    sys.exit("a Python without " + ", ".join(missing))
print(found["pyspark"].submodule_search_locations[0])
' 2>&1) && pyspark=${pyspark##*$'\n'} || case ${pyspark##*$'\n'} in
  "Python 3."* | "Python 2."*) # no pip helps there
    fail "$python, which is $pyspark" "Python 3.11, which the versions of conf/constraints.txt are for" \
      "Install it and unset SEEDLINGS_PYTHON, or name the path of one" ;;
  *)
    fail "$python, which is $(printf %s "${pyspark:-no Python}" | tail -n 1)" "a Python 3.11 with the packages of pyproject.toml" \
      "Install them with $python -m pip install -c $home/conf/constraints.txt $home, or unset SEEDLINGS_PYTHON" ;;
  esac
}

set_up() {
  local stamp=$home/.venv/installed wanted base clear=''
  wanted=$( (echo "$home" && cat "$home/pyproject.toml" "$home/conf/constraints.txt") | cksum)
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
      "$python" -m pip install --quiet --disable-pip-version-check --constraint conf/constraints.txt \
        --editable '.[dev]' >&2 &&
      echo "$wanted" >"$stamp"
  ) 9>"$home/.venv.lock" || fail "the set-up of $home/.venv failed" "pip to install what pyproject.toml names" \
    "See the message above; the next call tries again"
}

find_java() {
  local java=${JAVA_HOME:+$JAVA_HOME/bin/}java version
  version=$("$java" -version 2>&1 | sed -n 's/.*version "\(1\.\)\{0,1\}\([0-9]*\).*/\2/p') || true
  [ "${version:-0}" -ge 17 ] ||
    fail "no ${version:+newer }Java ${version:+than $version }${JAVA_HOME:+in JAVA_HOME=}${JAVA_HOME:-on the PATH}" \
      "Java 17" "Install it, for example with apt-get install openjdk-17-jre-headless, or set JAVA_HOME"
}

value_of() { # of an option among arguments; the last one counts
  local name=$1 found='' previous=''
  shift
  for argument in "$@"; do
    case $argument in "$name="*) found=${argument#*=} ;; esac
    [ "$previous" != "$name" ] || found=$argument
    previous=$argument
  done
  printf '%s' "$found"
}

whole() { printf '%s' "$(CDPATH='' cd -- "$(dirname -- "$1")" && pwd)/$(basename -- "$1")"; } # path of a file

given=("$@")
# Options before the job's name go to spark-submit unchanged; of some we have to know.
spark_options=()
master='' master_conf='' settings='' py_files='' files='' archives='' deploy_mode=client job=''
is_secure=yes has_secret='' detach=''
while [ $# -gt 0 ]; do
  case $1 in
  -h | --help) usage; exit 0 ;;
  --master) master=${2:-} ;;
  --master=*) master=${1#*=} ;;
  --properties-file) settings=${2:-} ;;
  --properties-file=*) settings=${1#*=} ;;
  --py-files) py_files=${2:-} ;;
  --py-files=*) py_files=${1#*=} ;;
  --files) files=${2:-} ;;
  --files=*) files=${1#*=} ;;
  --archives) archives=${2:-} ;;
  --archives=*) archives=${1#*=} ;;
  --deploy-mode) deploy_mode=${2:-} ;;
  --deploy-mode=*) deploy_mode=${1#*=} ;;
  --conf=*) setting=${1#*=} ;;
  --conf | -c) setting=${2:-} ;;
  esac
  case ${setting:=} in
  spark.master=*) master_conf=${setting#*=} ;;
  spark.submit.deployMode=*) deploy_mode=${setting#*=} ;;
  spark.authenticate=false) is_secure= ;;
  spark.authenticate.secret=* | spark.authenticate.secret.file=*) has_secret=yes ;;
  esac
  setting=
  case $1 in
  --insecure) is_secure=; shift ;;
  --detach) detach=yes; shift ;;
  -v | --verbose | --version | --supervise | --usage-error | --load-spark-defaults | --*=*)
    spark_options+=("$1"); shift ;;
  -*)
    [ $# -ge 2 ] || fail "$1 without a value" "spark-submit options, then a job" "See ./spark-submit.sh --help" 2
    spark_options+=("$1" "$2"); shift 2 ;;
  *) job=$1; shift; break ;;
  esac
done
if [ -z "$job" ] && [ "${given[*]:-}" = --version ]; then
  find_python
  PYTHONPATH=$home exec "$python" -P -m seedlings_spark.cli --version
fi
[ -n "$job" ] || { usage >&2; exit 2; }
if [ "$job" = help ]; then # as JOB --help
  case ${1:-test} in test | pack) usage; exit 0 ;; esac
  job=$1
  set -- --help
fi

if [ "$job" = test ]; then
  find_java
  find_python
  cd "$home"
  folders=(tests/unit tests/keras tests/spark)
  while true; do
    case ${1:-} in
    --all) export SEEDLINGS_TEST_ALL=1 ;; # more of the seeded kills
    --yarn) export SEEDLINGS_TEST_YARN=1 ;;
    *) break ;;
    esac
    shift
  done
  if [ -n "${SEEDLINGS_TEST_ALL:-}" ]; then
    folders+=(tests/cluster)
  elif [ -n "${SEEDLINGS_TEST_YARN:-}" ]; then
    folders+=(tests/cluster/yarn)
  fi
  for argument in "$@"; do # a path of one's own replaces the folders
    case $argument in tests/* | ./tests/* | "$home"/tests/*) folders=() ;; esac
  done
  exec "$python" -m pytest ${folders[@]+"${folders[@]}"} "$@"
fi

if [ "$job" = pack ]; then
  find_python
  options=()
  [ "${1:-}" != --gpu ] || { options=(--gpu); shift; }
  case ${1:-} in -*) fail "pack $1" "pack [--gpu] [HDFS folder]" "See ./spark-submit.sh --help" 2 ;; esac
  mkdir -p "$home/dist"
  PYTHONPATH=$home "$python" -P -m seedlings_spark.cluster.environment "$home/dist/environment.tar.gz" ${options[@]+"${options[@]}"}
  [ -n "${1:-}" ] || exit 0
  find_java
  shell=("${SPARK_HOME:-$pyspark}/bin/spark-class" org.apache.hadoop.fs.FsShell)
  "${shell[@]}" -mkdir -p "$1"
  exec "${shell[@]}" -put -f "$home/dist/environment.tar.gz" "$1/"
fi

program=$home/jobs/$job.py
case $job in
*.py)
  [ -f "$job" ] || fail "no file $job" "a program of your own, or one of: $jobs test pack" "Correct its path" 2
  program=$job
  ;;
*)
  case " $jobs " in
  *" $job "*) ;;
  *) fail "no job '$job'" "one of: $jobs test pack, or a FILE.py" "See ./spark-submit.sh --help" 2 ;;
  esac
  ;;
esac
case "$job ${1:-}" in "models promote" | "models delete")
  case ${2:--} in -*) ;; *) set -- "$1" --model-version "${@:2}" ;; esac ;;
esac
if [ "$job" = status ]; then
  master='local[1]'
  case ${1:-} in '' | -*) ;; *) set -- --run "$@" ;; esac
fi

# Wrong arguments of a job are told at once, without Spark; so is --help.
if [ "$program" != "$job" ]; then
  for argument in "$@"; do
    case $argument in -h | --help)
      find_python
      PYTHONPATH=$home exec "$python" -P -m seedlings_spark.cli "$job" --help ;;
    esac
  done
fi
find_java
find_python
SEEDLINGS_DEPLOY_MODE=$deploy_mode PYTHONPATH=$home SEEDLINGS_SPARK_OPTIONS=$(printf '%s\n' ${spark_options[@]+"${spark_options[@]}"}) \
  "$python" -P -m seedlings_spark.cli "$job" "$@"

if [ -n "$detach" ]; then
  run=$(value_of --run "$@")
  case $job=$run in
  train=file:///*) run=${run#file://} ;;
  train=*://*) run= ;;
  esac
  [ "$job" = train ] && [ -n "$run" ] ||
    fail "--detach $job${run:+ --run $run}" "train with --run and a folder of this machine, for the log" \
      "Add --run; or leave --detach to the cluster with --master yarn --deploy-mode cluster" 2
  mkdir -p "$run"
  again=()
  for argument in "${given[@]}"; do [ "$argument" = --detach ] || again+=("$argument"); done
  nohup "${BASH:-bash}" "$home/spark-submit.sh" "${again[@]}" >>"$run/train.log" 2>&1 </dev/null &
  echo "$run"
  echo "process $!, log $run/train.log; ./spark-submit.sh status $run says how far it is" >&2
  exit 0
fi

# Ours come first: of two options the later one counts. Settings of one's own take the place of ours.
ours=()
if [ -n "$settings" ]; then
  in_file=$(sed -n 's/^[[:space:]]*spark\.master[[:space:]=:]*//p' "$settings" 2>/dev/null | tail -n 1) || true
  master=${master:-${master_conf:-$in_file}}
else
  master=${master:-$master_conf}
  case $master in
  '' | local*) settings=spark-local.conf ;;
  yarn*) settings=spark-yarn.conf ;;
  *) settings=spark-standalone.conf ;;
  esac
  ours+=(--properties-file "$home/conf/$settings" --load-spark-defaults)
fi
[ -n "$master" ] || ours+=(--master 'local[*]')
[ "$job" != status ] || spark_options+=(--master "$master") # files are all that it needs
log=$(value_of --log "$@")
[ "$log" != json ] || ours+=(--conf spark.log.structuredLogging.enabled=true)

# Ours for this call: deleted when it ends. The secret of a standalone cluster stands on no command line.
shipped=''
case $master in
'' | local | 'local['*) ;;
*)
  shipped=$(mktemp -d)
  trap 'rm -rf "$shipped"' EXIT
  if [ -z "$is_secure" ]; then
    for name in authenticate network.crypto.enabled io.encryption.enabled; do
      ours+=(--conf "spark.$name=false")
    done
  elif [ "$settings" = spark-standalone.conf ]; then
    site=${SPARK_CONF_DIR:-${SPARK_HOME:-$pyspark}/conf}/spark-defaults.conf
    if [ -n "${SEEDLINGS_SPARK_SECRET:-}" ]; then
      (umask 077 && cat "$home/conf/$settings" - >"$shipped/spark.conf") <<<"spark.authenticate.secret $SEEDLINGS_SPARK_SECRET"
      ours=(--properties-file "$shipped/spark.conf" "${ours[@]:2}")
    elif [ -z "$has_secret" ] && ! grep -q '^[[:space:]]*spark\.authenticate\.secret' "$site" 2>/dev/null; then
      fail "no secret for Spark's connections with $master" \
        "the spark.authenticate.secret of its master and workers, in SEEDLINGS_SPARK_SECRET or in $site" \
        "Set it; or give --insecure if the cluster has none, and nobody else is on its network"
    fi
  fi
  ;;
esac
unset SEEDLINGS_SPARK_SECRET

# Here all is done by the Python that was found, whatever a .bashrc has for notebooks. PYSPARK_PYTHON is that of other
# machines; an environment that travels along is where containers unpack it.
unset PYSPARK_DRIVER_PYTHON_OPTS
on_nodes=$python
[ -z "$shipped" ] || on_nodes=${PYSPARK_PYTHON:-$python}
case ,$archives, in *'#environment,'*) on_nodes=./environment/bin/python ;; esac
driver_python=$python
if [ "$deploy_mode" = cluster ]; then
  driver_python=$on_nodes
  # What is on this machine only travels along, too.
  arguments=() previous=''
  for argument in "$@"; do
    value=''
    case $argument in --config=* | --network=*) value=${argument#*=} ;; esac
    case $previous in --config | --network) value=$argument ;; esac
    previous=$argument
    if [ -f "$value" ]; then
      files=${files:+$files,}$(whole "$value")
      argument=${argument%"$value"}$(basename -- "$value")
    fi
    arguments+=("$argument")
  done
  set -- ${arguments[@]+"${arguments[@]}"}
  [ -z "$files" ] || spark_options+=(--files "$files")
fi

# On this machine the package is read where it stands; executors elsewhere get it as a zip beside the job.
if [ -z "$shipped" ]; then
  export PYTHONPATH=$home${PYTHONPATH:+:$PYTHONPATH}
else
  (cd "$home" && "$python" -c '
import pathlib, sys, zipfile
with zipfile.ZipFile(sys.argv[1], "w", zipfile.ZIP_DEFLATED) as archive:
    for file in sorted(pathlib.Path("seedlings_spark").rglob("*.py")):
        archive.write(file)
' "$shipped/seedlings_spark.zip")
  # Behind all others, since it takes the place of a --py-files before it, whose files it names too.
  spark_options+=(--py-files "$shipped/seedlings_spark.zip${py_files:+,$py_files}")
fi

log4j=$home/conf/log4j2.properties
[ "$log" != json ] || log4j=$home/conf/log4j2-json.properties
# A site's spark-defaults.conf wins over the variables, and --conf on the command line over both.
[ "$deploy_mode" = cluster ] || ours+=(--conf "spark.pyspark.driver.python=$driver_python")
[ -n "$shipped" ] || ours+=(--conf "spark.pyspark.python=$on_nodes")
export PYSPARK_PYTHON=$on_nodes
export PYSPARK_DRIVER_PYTHON=$driver_python
export SPARK_HOME=${SPARK_HOME:-$pyspark}
export LOG4J_CONFIGURATION_FILE=${LOG4J_CONFIGURATION_FILE:-$log4j}
export TF_CPP_MIN_LOG_LEVEL=${TF_CPP_MIN_LOG_LEVEL:-3}

# spark-submit prints both streams of a Python driver on stdout. By this path the job finds stderr again. A file
# that is opened a second time would be written from its beginning, so there a pipe stands in between. What YARN says
# of a driver in a container is read, too.
#
# Java says that it uses a module that Spark 4 always asks for, which nobody can do anything about. A Ctrl-C is for
# the job, not for what passes on its last words.
without_noise() { env LC_ALL=C grep -a --line-buffered -v '^WARNING: Using incubator modules: jdk\.incubator\.vector$'; }
passed_on() {
  trap '' INT TERM HUP
  if [ "$log" = json ]; then
    without_noise | PYTHONPATH=$home "$python" -P -m seedlings_spark.cli --json-lines
  else
    without_noise
  fi
}
relay=
if [ "$deploy_mode" = cluster ] && [ -n "$shipped" ]; then
  exec 3>&2 2> >(exec tee "$shipped/said" >&3)
  relay=$!
elif [ -e "/proc/$$/fd/2" ]; then
  exec 3>&2
  export SEEDLINGS_STDERR=/proc/$$/fd/3
  # Of a log of JSON each line is one, also those of Java, of TensorFlow and of Python's own warnings.
  if [ -f "/proc/$$/fd/3" ] || [ "$log" = json ]; then export SEEDLINGS_STDERR=/proc/$$/fd/2 relay=yes; fi
  exec 2> >(passed_on >&3)
  [ -z "$relay" ] || relay=$!
fi

submit=("$SPARK_HOME/bin/spark-submit" ${ours[@]+"${ours[@]}"} ${spark_options[@]+"${spark_options[@]}"})
submit+=("$program" "$@")
[ -n "$shipped$relay" ] || exec "${submit[@]}"

# The zip has to go, or the pipe to run empty, afterwards. So this script stays; a signal that it gets is one for
# the application.
set -m
"${submit[@]}" 3>&- &
trap 'kill -TERM -- "-$!"' TERM HUP
trap 'kill -INT -- "-$!"' INT
code=0
wait "$!" || code=$?
while kill -0 "$!" 2>/dev/null; do
  code=0
  wait "$!" || code=$?
done
if [ -n "$relay" ]; then
  exec 2>&3
  wait "$relay" || true
fi
# Of a driver in a container spark-submit knows 0 and 1 only.
if [ "$code" = 1 ] && [ -s "$shipped/said" ]; then
  exited=$(sed -n 's/.*User application exited with status \([0-9]*\).*/\1/p' "$shipped/said" | tail -n 1)
  code=${exited:-1}
  application=$(grep -o 'application_[0-9]*_[0-9]*' "$shipped/said" | tail -n 1) || true
  echo "spark-submit.sh: the job ended with exit code $code; its own words: yarn logs -applicationId $application" >&2
fi
exit "$code"
