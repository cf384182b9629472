#!/bin/bash
# Makes what QEMU starts for the interoperation run, in DIRECTORY (target/guest): Debian's kernel and an initramfs with the few
# modules that it takes to mount the host's file system. Nothing is installed but QEMU. Does nothing where it is there.
set -euo pipefail

directory=$(realpath -m "${1:-target/guest}")
# wg and virtio_net are for the guest's own use, the rest for its root.
modules=(virtio_pci virtio_net 9pnet_virtio 9p wireguard)

if ! command -v apt-get >/dev/null; then
    echo "Debian's kernel comes from Debian's mirrors, and there is no apt-get here." >&2
    exit 1
fi
if ! command -v qemu-system-x86_64 >/dev/null; then
    if [ "$(id -u)" -ne 0 ]; then
        echo "QEMU is missing; as root: apt-get install --no-install-recommends qemu-system-x86" >&2
        exit 1
    fi
    apt-get update -q
    DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends qemu-system-x86
fi
[ -e "$directory/version" ] && cat "$directory/version" && exit 0

mkdir -p "$directory"
work=$(mktemp -d "$directory/work.XXXXXX")
trap 'rm -rf "$work"' EXIT
cd "$work"
image=$(apt-cache depends linux-image-amd64 | awk '$1 == "Depends:" && $2 ~ /^linux-image/ { print $2; exit }')
[ -n "$image" ] || { echo "apt knows no linux-image-amd64: apt-get update" >&2; exit 1; }
# The sandbox user of apt cannot write here, which it remarks upon.
apt-get download -q "$image" busybox-static 2>&1 | grep -v unsandboxed
for package in *.deb; do dpkg-deb -x "$package" unpacked; done
kernel=$(cd unpacked/boot && ls vmlinuz-*)
release=${kernel#vmlinuz-}
busybox=$(find "$PWD/unpacked" -type f -path '*/bin/busybox')

# Newer packages have everything in /usr.
[ -d unpacked/lib/modules ] || { mkdir -p unpacked/lib && mv unpacked/usr/lib/modules unpacked/lib/; }
"$busybox" depmod -b "$PWD/unpacked" "$release"
mkdir -p root/bin root/proc root/sys root/dev root/host "root/lib/modules/$release"
cp "$busybox" root/bin/busybox
ln -s busybox root/bin/sh
cp "unpacked/lib/modules/$release"/modules.{dep,alias,symbols} "root/lib/modules/$release/" 2>/dev/null || true
# What a module needs stands behind it, all of it.
for module in "${modules[@]}"; do
    line=$(grep -E "/$module\.ko[^:]*:" "unpacked/lib/modules/$release/modules.dep")
    for file in ${line/:/ }; do
        mkdir -p "root/lib/modules/$release/$(dirname "$file")"
        cp -n "unpacked/lib/modules/$release/$file" "root/lib/modules/$release/$file"
    done
done

cat >root/init <<'INIT'
#!/bin/sh
# The host's file system becomes the root, read-only. Then the script that the command line names is the first process.
export PATH=/bin
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t devtmpfs dev /dev
for module in @modules@; do /bin/busybox modprobe "$module"; done
/bin/busybox mount -t 9p -o trans=virtio,version=9p2000.L,ro,msize=262144,cache=mmap host /host
for part in $(/bin/busybox cat /proc/cmdline); do
    case $part in guest_init=*) script=${part#guest_init=} ;; esac
done
/bin/busybox umount /proc
exec /bin/busybox switch_root /host /bin/sh "$script"
INIT
sed -i "s/@modules@/${modules[*]}/" root/init
chmod +x root/init
(cd root && find . | "$busybox" cpio -o -H newc) | gzip >"$directory/initramfs.gz"
cp "unpacked/boot/$kernel" "$directory/vmlinuz"
echo "kernel $release, Debian's" | tee "$directory/version"
