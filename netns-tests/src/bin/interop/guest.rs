//! A virtual machine with Debian's kernel, which has WireGuard: QEMU by emulation, so it runs wherever namespaces do.
//!
//! Its root is ours, read-only over 9p, so it has our tools and our files. Every network card is in a namespace ("room") of
//! its own, where it is `eth0`: one machine is as many hosts as there are cards. Commands go over a serial line, many at a time:
//! a line `ID SCRIPT` there, a line `ID STATUS OUTPUT` back, script and output in base64.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use netns_tests::process::Process;
use netns_tests::topology::{Port, Switch};
use netns_tests::wait::retry;

/// An emulated machine on a busy one takes its time.
const BOOT_TIMEOUT: Duration = Duration::from_secs(180);
/// The longest command waits for a minute itself.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(150);
const MEMORY_MB: u32 = 512;

/// The first process. Cards come in the order of the command line.
const INIT: &str = r#"
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
mount -t proc proc /proc && mount -t sysfs sys /sys && mount -t devtmpfs dev /dev && mount -t tmpfs tmpfs /run
stty -F /dev/ttyS1 raw -echo 115200
number=0
while [ -e /sys/class/net/eth$number ]; do
    ip netns add room$number
    ip link set eth$number netns room$number
    ip -n room$number link set eth$number name eth0
    ip -n room$number link set lo up
    number=$((number + 1))
done
exec 3<>/dev/ttyS1
while read -r id script <&3; do
    {
        output=$(echo "$script" | base64 -d | sh 2>&1 3<&-)
        line="$id $? $(printf %s "$output" | base64 -w 0)"
        flock /run/line printf '%s\n' "$line" >&3
    } &
done
"#;

type Answer = (i32, String);
type Waiting = Arc<Mutex<HashMap<u64, Sender<Answer>>>>;

/// A running machine. Dropping it ends it.
pub(crate) struct Guest {
    line: Mutex<(UnixStream, u64)>,
    waiting: Waiting,
    _process: Process,
}

impl Guest {
    /// Starts what `packaging/build-guest.sh` put into `image`, with a card per address, each plugged into `switch`. Returns
    /// when commands are taken.
    pub(crate) fn start(
        image: &Path,
        switch: &Switch,
        cards: usize,
        directory: &Path,
    ) -> Result<(Self, Vec<Port>)> {
        let (init, socket) = (directory.join("guest-init.sh"), directory.join("guest.sock"));
        std::fs::write(&init, INIT)?;
        let mut command = switch.command("qemu-system-x86_64");
        command.args(["-accel", "tcg", "-cpu", "max", "-display", "none", "-monitor", "none", "-no-reboot"]);
        command.args(["-m", &MEMORY_MB.to_string(), "-nic", "none"]);
        command.arg("-kernel").arg(image.join("vmlinuz")).arg("-initrd").arg(image.join("initramfs.gz"));
        let append = format!("console=ttyS0 quiet panic=-1 net.ifnames=0 guest_init={}", init.display());
        command.args(["-append", &append]);
        command.args(["-fsdev", "local,id=host,path=/,security_model=none,readonly=on,multidevs=remap"]);
        command.args(["-device", "virtio-9p-pci,fsdev=host,mount_tag=host"]);
        command.arg("-serial").arg(format!("file:{}", directory.join("guest-console.txt").display()));
        command.arg("-serial").arg(format!("unix:{},server=on,wait=off", socket.display()));
        let mut ports = Vec::new();
        for card in 0..cards {
            let (port, tap) = switch.attach_tap()?;
            command.args(["-netdev", &format!("tap,id=n{card},ifname={tap},script=no,downscript=no")]);
            command
                .args(["-device", &format!("virtio-net-pci,netdev=n{card},mac=52:54:00:00:00:{card:02x}")]);
            ports.push(port);
        }
        let process = Process::start("qemu", command, &directory.join("qemu.txt"))?;
        let guest = Self::connect(&socket, process)?;
        Ok((guest, ports))
    }

    fn connect(socket: &Path, mut process: Process) -> Result<Self> {
        let stream = retry("QEMU takes connections", Duration::from_secs(30), || {
            ensure!(process.ended()?.is_none(), "QEMU ended: {}", process.log_tail(5));
            Ok(UnixStream::connect(socket)?)
        })?;
        let waiting = Waiting::default();
        let (reader, told) = (BufReader::new(stream.try_clone()?), Arc::clone(&waiting));
        // Ends with the machine, whose end closes the line.
        std::thread::spawn(move || reader.lines().map_while(Result::ok).for_each(|line| tell(&told, &line)));
        let guest = Self { line: Mutex::new((stream, 0)), waiting, _process: process };
        // What is said before somebody reads may be lost.
        let ready = || guest.ask("true", Duration::from_secs(5)).map(drop);
        retry("the guest takes commands", BOOT_TIMEOUT, ready)?;
        Ok(guest)
    }

    /// What a program printed in a room; fails if the program does.
    pub(crate) fn output(&self, room: usize, program: &str, arguments: &[&str]) -> Result<String> {
        let words: Vec<String> = arguments.iter().map(|word| format!("'{word}'")).collect();
        let script = format!("exec nsenter --net=/run/netns/room{room} {program} {}", words.join(" "));
        match self.ask(&script, COMMAND_TIMEOUT)? {
            (0, output) => Ok(output),
            (_, said) => bail!("`{program} {}` failed in the guest: {}", arguments.join(" "), said.trim()),
        }
    }

    fn ask(&self, script: &str, timeout: Duration) -> Result<Answer> {
        let (sender, answer) = channel();
        let id = {
            let mut line = self.line.lock().unwrap_or_else(PoisonError::into_inner);
            line.1 += 1;
            let id = line.1;
            self.waiting.lock().unwrap_or_else(PoisonError::into_inner).insert(id, sender);
            line.0.write_all(format!("{id} {}\n", BASE64.encode(script)).as_bytes())?;
            id
        };
        let answer = answer.recv_timeout(timeout);
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
        answer.with_context(|| format!("the guest said nothing in {timeout:?} to: {script}"))
    }
}

fn tell(waiting: &Waiting, line: &str) {
    let Some((id, answer)) = parse(line) else { return };
    let waiting = waiting.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
    // Whoever asked may have given up.
    waiting.into_iter().for_each(|waiting| drop(waiting.send(answer.clone())));
}

fn parse(line: &str) -> Option<(u64, Answer)> {
    let mut words = line.trim().splitn(3, ' ');
    let (id, status) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
    let output = BASE64.decode(words.next().unwrap_or_default()).ok()?;
    Some((id, (status, String::from_utf8_lossy(&output).into_owned())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_an_answer_with_or_without_output_and_noise_is_none() {
        assert_eq!(parse("7 0 aGk=\r"), Some((7, (0, "hi".into()))));
        assert_eq!(parse("8 1 "), Some((8, (1, String::new()))));
        assert_eq!(parse("[   14.0] sysrq: Power Off"), None);
        assert_eq!(parse(""), None);
    }
}
