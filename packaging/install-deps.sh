#!/bin/bash
# Installs what building, testing and the demo need beside Rust, on Debian and its kin. Does nothing where all of it is
# there. Without root it says what to install. Postgres is installed without starting a cluster of its own.
set -euo pipefail

# A program that tells whether a package is there, and the package.
needs=(
    "cc gcc"
    "make make"
    "ip iproute2"
    "ping iputils-ping"
    "nft nftables"
    "iperf3 iperf3"
    "tcpdump tcpdump"
    "wg wireguard-tools"
    "wireguard-go wireguard-go"
    "unshare util-linux"
    "timeout coreutils"
    "nginx nginx"
    "haproxy haproxy"
)

missing=()
# Of a module there is no program.
[ -e /usr/lib/nginx/modules/ngx_stream_module.so ] || missing+=(libnginx-mod-stream)
# Nor of the C library's headers, which gcc only recommends.
[ -e /usr/include/stdlib.h ] || missing+=(libc6-dev)
PATH=$PATH:/usr/sbin:/sbin
for need in "${needs[@]}"; do
    read -r program package <<<"$need"
    command -v "$program" >/dev/null || missing+=("$package")
done
if ! ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 && ! command -v initdb >/dev/null; then
    missing+=(postgresql)
fi
if ! command -v cargo >/dev/null && ! [ -x "$HOME/.cargo/bin/cargo" ]; then
    echo "Rust is missing: install it from https://rustup.rs, then run this again." >&2
    exit 1
fi
[ ${#missing[@]} -eq 0 ] && exit 0

if ! command -v apt-get >/dev/null; then
    echo "These are missing; on Debian they come from the packages of these names: ${missing[*]}" >&2
    exit 1
fi
if [ "$(id -u)" -ne 0 ]; then
    echo "These are missing; as root: apt-get install --no-install-recommends ${missing[*]}" >&2
    exit 1
fi

echo "Installing: ${missing[*]}"
export DEBIAN_FRONTEND=noninteractive
apt-get update -q
for package in "${missing[@]}"; do
    if [ "$package" = postgresql ]; then
        # Read when the server package is configured: no default cluster, nothing started.
        apt-get install -y -q --no-install-recommends postgresql-common
        mkdir -p /etc/postgresql-common
        conf=/etc/postgresql-common/createcluster.conf
        grep -qs '^create_main_cluster' "$conf" || echo 'create_main_cluster = false' >>"$conf"
    fi
done
# Balancers are started by the tests alone: nothing may begin to listen because it was installed.
policy=/usr/sbin/policy-rc.d
if ! [ -e "$policy" ]; then
    trap 'rm -f "$policy"' EXIT
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod +x "$policy"
fi
apt-get install -y -q --no-install-recommends "${missing[@]}"
if command -v systemctl >/dev/null; then
    for service in nginx haproxy; do
        case " ${missing[*]} " in *" $service "*) systemctl disable -q "$service" 2>/dev/null || true ;; esac
    done
fi
