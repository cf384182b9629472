#!/bin/bash
# Builds the WireGuard programs that ours is compared with, into DIRECTORY (target/peers): wireguard-go's newest where Go is
# present, Debian's package of it otherwise, and boringtun-cli. `versions` there says which. Does nothing where they are there.
set -euo pipefail

directory=$(realpath -m "${1:-target/peers}")
mkdir -p "$directory"
cd "$directory"
: >>versions

if ! [ -x wireguard-go ]; then
    if command -v go >/dev/null; then
        GOBIN=$directory go install golang.zx2c4.com/wireguard@latest
        mv wireguard wireguard-go
        echo "wireguard-go $(go version -m wireguard-go | awk '$1 == "mod" { print $3 }'), built here" >>versions
    else
        command -v wireguard-go >/dev/null || apt-get install -y -q --no-install-recommends wireguard-go
        ln -s "$(command -v wireguard-go)" wireguard-go
        echo "wireguard-go $(dpkg-query -W -f '${Version}' wireguard-go), the system's package" >>versions
    fi
fi

if ! [ -x boringtun-cli ]; then
    cargo install --quiet --locked --root "$directory" --target-dir "$directory/build" boringtun-cli
    rm -rf build
    mv bin/boringtun-cli .
    echo "$(./boringtun-cli --version), built here" >>versions
fi
cat versions
