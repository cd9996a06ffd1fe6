# Sourced with the name of an extra: makes .venv if there is none, installs the package with that extra, and activates it.
python=${PYTHON:-python3}
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "Python 3.10 or later is needed; $python is older. Set PYTHON to another one." >&2; exit 2; }
[ -x .venv/bin/python ] || { echo "making .venv"; "$python" -m venv .venv; }
. .venv/bin/activate
python -m pip --version >/dev/null 2>&1 || python -m ensurepip -q
python -m pip install -q uv
echo "installing the package and its requirements (the first time: a few GB, mostly PyTorch)"
uv pip install -q -e ".[$1]" || python -m pip install -q -e ".[$1]"
