//! The lab itself, on ordinary programs: an instrument that cannot show a fault proves nothing by not showing one.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use netns_tests::capture::{Capture, announce_address};
use netns_tests::ping::{Echo, Pinger};
use netns_tests::postgres::Postgres;
use netns_tests::process::Process;
use netns_tests::scenario::Scenario;
use netns_tests::topology::{Fault, Host, Port, Switch};
use netns_tests::wait::{hold_for, wait_until};

const LEFT: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const RIGHT: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
const PACE: Duration = Duration::from_millis(5);
const SOON: Duration = Duration::from_secs(5);

/// `left eth0 ── switch ── eth0 right`
struct Pair {
    left: Host,
    right: Host,
    right_port: Port,
    _switch: Switch,
    _left_port: Port,
}

fn pair() -> Result<Pair> {
    let switch = Switch::new()?;
    let (left, right) = (Host::new("left")?, Host::new("right")?);
    let left_port = switch.attach(&left, &format!("{LEFT}/24"))?;
    let right_port = switch.attach(&right, &format!("{RIGHT}/24"))?;
    let opening = Pinger::start("opening", &left.namespace, RIGHT, PACE)?;
    opening.first_reply_after(Instant::now(), SOON)?;
    Ok(Pair { left, right, right_port, _switch: switch, _left_port: left_port })
}

pub(crate) fn gap_meter_counts_what_a_cut_loses(s: &mut Scenario) -> Result<()> {
    let pair = pair()?;
    let pinger = Pinger::start("left to right", &pair.left.namespace, RIGHT, PACE)?;
    hold_for(Duration::from_millis(500), || Ok(()))?;
    let cutting = Instant::now();
    pair.right_port.fault(Fault::Cut)?;
    let cut = Instant::now();
    hold_for(Duration::from_millis(300), || Ok(()))?;
    let mended = Instant::now();
    pair.right_port.mend()?;
    let back = pinger.first_reply_after(mended, SOON)? - mended;
    let report = pinger.finish()?;
    s.note(format!(
        "{} sent, {} lost, longest gap {:?}, back after {back:?}",
        report.sent(),
        report.lost(),
        report.longest_gap()
    ));
    let lost = |echo: &&Echo| echo.replied_at.is_none();
    let meanwhile = report.echoes.iter().filter(|echo| echo.sent_at > cut && echo.sent_at < mended);
    let (sent, gone) = (meanwhile.clone().count(), meanwhile.filter(lost).count());
    ensure!(sent > 10 && gone == sent, "{gone} of {sent} sent during the cut were lost");
    let before = |echo: &&Echo| echo.sent_at + back + Duration::from_millis(10) < cutting;
    let outside = report.echoes.iter().filter(|echo| before(echo) || echo.sent_at > mended + back);
    ensure!(outside.clone().count() > 10 && outside.filter(lost).count() == 0, "lost without a cut");
    ensure!(report.longest_gap() >= Duration::from_millis(300), "the gap is as long as the cut");
    ensure!(
        back < s.widened(Duration::from_millis(100)),
        "answers come again with the first request after the cut, not {back:?} later"
    );
    Ok(())
}

pub(crate) fn one_way_faults_and_loss_do_what_they_say(s: &mut Scenario) -> Result<()> {
    let pair = pair()?;
    let heard = Capture::start(&pair.right.namespace, "eth0")?;
    let requests = |since| {
        let is_icmp = |bytes: &[u8]| bytes.get(23) == Some(&1) && bytes.get(34) == Some(&8);
        heard.since(since, |frame| is_icmp(&frame.bytes)).len()
    };
    for (fault, arrives) in [(Fault::Deaf, false), (Fault::Mute, true)] {
        pair.right_port.fault(fault)?;
        let since = Instant::now();
        let pinger = Pinger::start("left to right", &pair.left.namespace, RIGHT, PACE)?;
        hold_for(Duration::from_millis(200), || Ok(()))?;
        let report = pinger.finish()?;
        ensure!(report.lost() == report.sent(), "{fault:?}: no answer may come");
        ensure!((requests(since) > 0) == arrives, "{fault:?}: {} requests arrived", requests(since));
    }
    pair.right_port.fault(Fault::Loss(300))?;
    let pinger = Pinger::start("left to right", &pair.left.namespace, RIGHT, Duration::from_millis(1))?;
    hold_for(Duration::from_secs(1), || Ok(()))?;
    let report = pinger.finish()?;
    let share = report.lost() * 100 / report.sent();
    s.note(format!("30 % loss each way: {share} % of the round trips are lost"));
    // 1 - 0.7 x 0.7 is 51 %; a thousand tries stay within 10 of it but for one run in millions.
    ensure!((41..=61).contains(&share), "30 % each way lose about half of the round trips, not {share} %");
    pair.right_port.mend()?;
    let pinger = Pinger::start("left to right", &pair.left.namespace, RIGHT, PACE)?;
    hold_for(Duration::from_millis(200), || Ok(()))?;
    s.none_lost(vec![pinger])
}

pub(crate) fn capture_sees_a_packet_and_silence(_: &mut Scenario) -> Result<()> {
    let pair = pair()?;
    let capture = Capture::start(&pair.right.namespace, "eth0")?;
    let silent = Instant::now();
    hold_for(Duration::from_millis(300), || Ok(()))?;
    let seen = capture.since(silent, |frame| frame.is_tunnel(51820));
    ensure!(seen.is_empty(), "nobody sent anything, and {} frames were seen", seen.len());
    let sent = Instant::now();
    pair.left.namespace.run(|| -> std::io::Result<usize> {
        std::net::UdpSocket::bind((LEFT, 51820))?.send_to(b"x", (RIGHT, 51820))
    })??;
    wait_until("the packet is seen", SOON, || {
        Ok((capture.since(sent, |frame| frame.is_tunnel(51820)).len() == 1).then_some(()))
    })
}

/// `left ── switch ── right, third`: an address moves from one to the other; then a route does.
pub(crate) fn routes_and_addresses_move(s: &mut Scenario) -> Result<()> {
    let pair = pair()?;
    let third = Host::new("third")?;
    let _port = pair._switch.attach(&third, "192.0.2.3/24")?;
    let shared = Ipv4Addr::new(192, 0, 2, 10);
    pair.right.namespace.ip("addr add 192.0.2.10/32 dev eth0")?;
    let pinger = Pinger::start("to the shared address", &pair.left.namespace, shared, PACE)?;
    pinger.first_reply_after(Instant::now(), SOON)?;
    pair.right.namespace.ip("addr del 192.0.2.10/32 dev eth0")?;
    third.namespace.ip("addr add 192.0.2.10/32 dev eth0")?;
    announce_address(&third.namespace, "eth0", shared)?;
    let moved = Instant::now();
    let back = pinger.first_reply_after(moved, SOON)? - moved;
    s.note(format!("the shared address answers {back:?} after it moved"));
    ensure!(
        back < s.widened(Duration::from_millis(200)),
        "a gratuitous ARP moves an address at once, not in {back:?}"
    );

    let anycast = Ipv4Addr::new(203, 0, 113, 10);
    for host in [&pair.right, &third] {
        host.namespace.ip("addr add 203.0.113.10/32 dev lo")?;
    }
    let heard = Capture::start(&third.namespace, "eth0")?;
    pair.left.route("replace 203.0.113.10/32 via 192.0.2.2")?;
    let pinger = Pinger::start("to the anycast address", &pair.left.namespace, anycast, PACE)?;
    pinger.first_reply_after(Instant::now(), SOON)?;
    let moved = Instant::now();
    pair.left.route("replace 203.0.113.10/32 via 192.0.2.3")?;
    pinger.first_reply_after(moved, SOON)?;
    let to_anycast = |bytes: &[u8]| bytes.get(30..34) == Some(&anycast.octets()[..]);
    wait_until("the other machine answers", SOON, || {
        Ok((!heard.since(moved, |frame| to_anycast(&frame.bytes)).is_empty()).then_some(()))
    })
}

pub(crate) fn signals_reach_processes_and_drop_ends_them(s: &mut Scenario) -> Result<()> {
    let host = Host::new("host")?;
    let log = s.directory.join("loop.log");
    let mut command = host.namespace.command("sh");
    command.args(["-c", "while :; do echo x; sleep 0.01; done"]);
    let mut process = Process::start("loop", command, &log)?;
    let size = || std::fs::metadata(&log).map(|meta| meta.len()).unwrap_or_default();
    let grows = |from: u64| wait_until("the log grows", SOON, || Ok((size() > from).then_some(())));
    grows(0)?;
    process.freeze()?;
    let state = format!("/proc/{}/stat", process.pid());
    wait_until("it is stopped", SOON, || {
        Ok(std::fs::read_to_string(&state)?.contains(") T ").then_some(()))
    })?;
    let frozen = size();
    hold_for(Duration::from_millis(100), || {
        ensure!(size() == frozen, "a frozen process writes nothing");
        Ok(())
    })?;
    process.thaw()?;
    grows(frozen)?;
    let (bytes, _) = process.usage()?;
    ensure!(bytes > 100_000, "a shell takes more than {bytes} bytes");
    let pid = process.pid();
    drop(process);
    ensure!(!std::path::Path::new(&format!("/proc/{pid}")).exists(), "a dropped process is gone");
    Ok(())
}

pub(crate) fn postgres_syncs_and_goes(s: &mut Scenario) -> Result<()> {
    let host = Host::new("db")?;
    host.namespace.ip("addr add 192.0.2.5/24 dev lo")?;
    let mut postgres = Postgres::start(host, Ipv4Addr::new(192, 0, 2, 5), &s.directory.join("postgres"))?;
    ensure!(postgres.psql("holdfast", "show fsync")? == "on", "fsync is on");
    let pid = postgres.process()?.pid();
    drop(postgres);
    ensure!(!std::path::Path::new(&format!("/proc/{pid}")).exists(), "it is gone with its scenario");
    Ok(())
}
