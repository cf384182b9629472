#!/bin/bash
# Builds VpnCloud, which shared addresses are compared with, into DIRECTORY (target/vpncloud): the newest on crates.io, with the dependencies that it
# was released with, since newer ones no longer fit it. Does nothing where it is there.
set -euo pipefail

directory=$(realpath -m "${1:-target/vpncloud}")
mkdir -p "$directory"
cd "$directory"
if ! [ -x vpncloud ]; then
    # With a peer timeout below two minutes a difference of its goes below zero: a build that checks would end there.
    CARGO_PROFILE_RELEASE_OVERFLOW_CHECKS=false \
        cargo install --quiet --locked --root "$directory" --target-dir "$directory/build" vpncloud
    rm -rf build
    mv bin/vpncloud .
    echo "$(./vpncloud --version), built here" >versions
fi
cat versions
