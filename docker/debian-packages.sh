#!/bin/sh
# Install what `make test-all` checks the program against: GDAL's own programs, QGIS, and Docker with debootstrap.
set -eu
missing=""
for package in gdal-bin python3-gdal python3-qgis docker.io debootstrap; do
  dpkg -s "$package" >/dev/null 2>&1 || missing="$missing $package"
done
[ -z "$missing" ] && exit 0
become=""
[ "$(id -u)" = 0 ] || become="sudo"
$become apt-get -o DPkg::Lock::Timeout=600 update -q
# shellcheck disable=SC2086  # the list is meant to split
DEBIAN_FRONTEND=noninteractive $become apt-get -o DPkg::Lock::Timeout=600 install -y -q --no-install-recommends $missing
