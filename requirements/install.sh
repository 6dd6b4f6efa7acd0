#!/bin/sh
# install.sh PYTHON VENV LOCK: make VENV with what LOCK pins, by hash, and this repository in it.
set -eu
python=$1 venv=$2 lock=$3

fail() { echo "setup: $1" >&2; exit 1; }

if [ ! -x "$venv/bin/python" ]; then
    command -v "$python" >/dev/null || fail "$python is not there. Install Python 3.10 or later (Debian: apt install python3 python3-venv), or name one: make setup PYTHON=/path/to/python3"
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
        fail "$("$python" --version) is too old; 3.10 or later is needed. Name another one: make setup PYTHON=/path/to/python3"
    "$python" -m venv "$venv" ||
        { rm -rf "$venv"; fail "cannot make a virtual environment. On Debian: apt install python3-venv"; }
fi
echo "setup: installing $lock into $venv ($("$venv/bin/python" --version))"

# uv first, as pinned: it installs the rest in seconds.
if ! [ -x "$venv/bin/uv" ]; then
    awk '/^[a-z]/ {mine = /^uv==/} mine' "$lock" > "$venv/uv.lock"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps \
        --require-hashes -r "$venv/uv.lock" ||
        fail "cannot download packages. Is there a network, or a proxy or an index to set (PIP_INDEX_URL)?"
fi
# The lock is complete, so nothing is resolved again (which would not know of dev.overrides).
# Where only pip has been told of an index, pip does it.
"$venv/bin/uv" pip install --quiet --python "$venv/bin/python" --no-deps --require-hashes \
    -r "$lock" ||
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps \
        --require-hashes -r "$lock" ||
    fail "cannot install what $lock pins; the lines above say why."
"$venv/bin/uv" pip install --quiet --python "$venv/bin/python" --no-deps --no-build-isolation \
    --offline --config-setting editable_mode=compat --editable .
