#!/bin/sh
# Run the tests on Python 3.13, whose half of requirements.lock differs: rasterio 1.5, numpy 2.5 and others that need 3.12.
# The extras mlflow and wandb are not in the lock, so that nothing of theirs holds numpy back; no test here needs them.
#
#   sh docker/test-py313.sh [PYTEST ARGUMENT...]
#
# Without arguments: what `make test` runs, then what asks QGIS and GDAL's programs. A python3.13 that runs is taken;
# elsewhere debootstrap puts Debian 13 into .py313/debian13 (as root), and its QGIS 3.40 and GDAL 3.10 are asked.
# `rm -rf .py313` removes all of it: nothing stays mounted.
set -eu
cd "$(dirname "$0")/.."
uv=$PWD/.venv/bin/uv
debian=$PWD/.py313/debian13

install() {  # from where uv keeps its files, as hard links: WHERE, in uv's words
  "$uv" pip install "$@" --require-hashes -r requirements.lock
  "$uv" pip install "$@" --no-deps --editable .
}

in_debian() {  # COMMAND...: this folder is at its own place there; the mounts end with the command
  mkdir -p "$debian$PWD"
  # shellcheck disable=SC2016  # the inner shell's variables
  unshare --mount sh -euc '
    mount --rbind /dev "$0/dev"
    mount -t proc proc "$0/proc"
    mount --bind "$PWD" "$0$PWD"
    exec chroot "$0" env -u TMPDIR -u PYTHONPATH --chdir="$PWD" "$@"' "$debian" "$@"
}

if python3.13 -c "import venv" 2>/dev/null; then
  python=.py313/venv/bin/python
  [ -x $python ] || "$uv" venv --quiet --python "$(command -v python3.13)" .py313/venv
  install --python $python
  run() { $python "$@"; }
else
  [ "$(id -u)" = 0 ] || exec sudo sh "$0" "$@"
  if [ ! -e "$debian/installed" ]; then
    command -v debootstrap >/dev/null || { echo "error: no python3.13 runs, and debootstrap is missing: make debian" >&2; exit 69; }
    rm -rf "$debian"
    debootstrap --variant=minbase trixie "$debian"
    DEBIAN_FRONTEND=noninteractive in_debian apt-get install -y -q --no-install-recommends \
      python3-venv python3-qgis python3-gdal gdal-bin git
    in_debian python3 -m venv --without-pip /venv
    touch "$debian/installed"
  fi
  install --python-version 3.13 --target "$debian/venv/lib/python3.13/site-packages"
  run() { in_debian /venv/bin/python "$@"; }
fi
if [ $# -gt 0 ]; then
  run -m pytest "$@"
else
  run -m pytest -n 2 --dist worksteal
  run -m pytest -m "qgis or gdal"
fi
