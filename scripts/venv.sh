# Sourced with the name of an extra, demo or dev: activates .venv, with the package and the locked requirements of that extra.
# LATEST=1 takes the newest versions that settings.ini allows instead, PYTHON another Python. What an interrupted run, another
# Python or an earlier version of this script left behind is made anew.
refuse() { echo "$1" >&2; exit 2; }
log=$(mktemp)  # elsewhere, since it is this disk that may be full
run() {  # a command whose output goes to the log, and of that the last line to whoever is watching
  local watcher=
  [ -t 2 ] && { while sleep 1; do printf '\r\033[K%s' "$(tail -n 1 "$log" | cut -c1-78)" >&2; done & watcher=$!; }
  local status=0
  "$@" >>"$log" 2>&1 || status=$?
  [ -z "$watcher" ] || { kill "$watcher"; printf '\r\033[K' >&2; }
  return $status
}
cause() { grep -iE 'error|×|╰' "$log" | tail -n 1 | cut -c1-200; }
give_up() {  # in one line: why, if the log tells, else $1, if there is one
  if grep -qiE 'no space left|os error 28|errno 28|disk quota' "$log" || [ "$(df -Pk . | awk 'NR == 2 {print $4}')" -lt 100000 ]; then
    refuse "no space left on the disk: the packages take 6 GB where PyTorch comes with CUDA, else 2 GB. Free some and start again."
  elif grep -qiE 'dns error|error sending request|failed to lookup|name resolution|connection refused|unreachable|timed out|newconnectionerror|sslerror|certificate verify|from versions: none' "$log"; then
    refuse "no connection to the package index, or it lacks what is needed: check the network (or the proxy and its certificate, or UV_INDEX_URL and PIP_INDEX_URL) and start again."
  elif [ -n "${1:-}" ]; then refuse "$1: $(cause) All of it: $log."; fi
}
locked() { run "${pip[@]}" -r "requirements/$1.txt" && run "${pip[@]}" --no-deps -e .; }
allowed() { run "${pip[@]}" --upgrade -e ".[$1]"; }
either() {  # installs by uv, or else by pip, which may know an index, a proxy or a certificate that uv does not
  pip=(uv pip install)
  if command -v uv >/dev/null && "$@"; then return; fi
  : > "$log"
  pip=(python -m pip install --disable-pip-version-check)
  "$@"
}
python=${PYTHON:-$(command -v python3 || command -v python || echo python3)}
version=$("$python" -c 'import sys; print(*sys.version_info[:2], sep=".") if sys.version_info >= (3, 10) else sys.exit(1)' 2>/dev/null) ||
  refuse "Python 3.10 or later is needed; '$python' is older or missing. Set PYTHON to another one."
state=.venv/simam_ema_fastai  # a file per extra that is installed, with what it was made from; `unfinished` while one is being installed
made_from="Python $version, ${LATEST:+the newest }$(cat settings.ini setup.py pyproject.toml "requirements/$1.txt" | cksum)"
[ -d .venv/Scripts ] && bin=.venv/Scripts || bin=.venv/bin
if [ ! -d $state ] || [ -e $state/unfinished ] || ! "$bin/python" -c "import sys; sys.exit(sys.version_info[:2] != (${version/./, }))" 2>/dev/null; then
  [ ! -e .venv ] || echo ".venv is from an earlier version, another Python, or was never finished: making it anew"
  rm -rf .venv || refuse "cannot take .venv away: see who may write here."
  "$python" -m venv .venv >"$log" 2>&1 && mkdir $state ||
    give_up "no virtual environment can be made here; on Debian it takes apt-get install python3-venv"
fi
[ -d .venv/Scripts ] && bin=.venv/Scripts || bin=.venv/bin
. $bin/activate
if [ "$(cat "$state/$1" 2>/dev/null)" != "$made_from" ]; then
  echo "installing the package and its requirements into .venv (the first time: up to 3 GB to fetch, mostly PyTorch)"
  touch $state/unfinished
  rm -f "$state/$1"
  command -v uv >/dev/null || run python -m pip install --disable-pip-version-check uv || true  # without it pip does, more slowly
  if [ -n "${LATEST:-}" ] || ! either locked "$1"; then
    [ -n "${LATEST:-}" ] || { give_up; echo "the locked versions cannot be had here ($(cause)): taking what settings.ini allows" >&2; }
    either allowed "$1" || give_up "installing failed"
  fi
  echo "$made_from" > "$state/$1"
  rm $state/unfinished
fi
rm -f "$log"
