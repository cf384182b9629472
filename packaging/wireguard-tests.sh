#!/bin/bash
# Runs wireguard-go's own tests/netns.sh, as it is in the newest version of its module, against PROGRAM (an `agent`). It is fetched
# with Go and never changed, but for what the kernel here lacks, which is said. Everything it prints goes to LOG.
# Needs root: it makes network namespaces, whose names and sockets are kept in a /run of its own.
set -euo pipefail

program=$(realpath "$1")
log=$(realpath -m "$2")

if [ "$(id -u)" -ne 0 ]; then
    echo "netns.sh sets the kernel's message_cost, which takes root." >&2
    exit 1
fi
if ! command -v go >/dev/null; then
    echo "netns.sh comes with wireguard-go's module, which takes Go to be fetched: https://go.dev/dl" >&2
    exit 1
fi
needs=("ncat ncat" "iptables iptables" "iperf3 iperf3" "ss iproute2" "wg wireguard-tools" "ping iputils-ping")
missing=()
PATH=$PATH:/usr/sbin:/sbin
for need in "${needs[@]}"; do
    read -r tool package <<<"$need"
    command -v "$tool" >/dev/null || missing+=("$package")
done
if [ ${#missing[@]} -ne 0 ]; then
    if ! command -v apt-get >/dev/null; then
        echo "These are missing; on Debian they come from the packages of these names: ${missing[*]}" >&2
        exit 1
    fi
    apt-get update -q
    DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "${missing[@]}"
fi

module=golang.zx2c4.com/wireguard
# Outside of any module, so that none of ours is looked for.
cd /
fetched=$(go mod download -json "$module@latest")
field() { sed -n "s/^\t\"$1\": \"\(.*\)\",\?$/\1/p" <<<"$fetched"; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cp "$(field Dir)/tests/netns.sh" "$work/netns.sh"
chmod +x "$work/netns.sh"
echo "netns.sh of $module $(field Version), against $program wg"

# Containers have these read-only. The script only quiets the kernel's limit of messages there.
if ! (: >>/proc/sys/net/core/message_cost) 2>/dev/null; then
    echo "adapted: /proc/sys/net/core/message_cost cannot be written here, so the limit of kernel messages stays"
    sed -i 's|/proc/sys/net/core/message_cost|/dev/null|' "$work/netns.sh"
fi
# At its end it looks for messages of WireGuard in the kernel; ours is no part of that.
if ! [ -r /dev/kmsg ]; then
    echo "adapted: there is no /dev/kmsg here, so nothing is looked for in the kernel's messages"
    sed -i 's|< /dev/kmsg|< /dev/null|' "$work/netns.sh"
fi

mkdir -p "$(dirname "$log")"
begun=$SECONDS
# Process 1 of its own namespace: whatever it leaves behind ends with it.
room=(unshare --mount --ipc --pid --fork --kill-child --mount-proc)
inside='mount -t tmpfs tmpfs /run && exec "$0" "$1"'
if "${room[@]}" bash -c "$inside" "$work/netns.sh" "$program wg" >"$log" 2>&1 </dev/null \
    && grep -q 'Objects that were created were also destroyed' "$log"; then
    echo "passed in $((SECONDS - begun)) s, with $(grep -c '^iperf Done' "$log") runs of iperf3; all it said is in $log"
else
    tail -n 30 "$log" >&2
    echo "netns.sh failed after $((SECONDS - begun)) s, at the end of what is shown above; all it said is in $log" >&2
    exit 1
fi
