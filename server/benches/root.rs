//! The pace at which a new root signs anew what the former did, in a cluster of thousands: `server root rotate`, then one server that runs, for as long as a
//! few batches take. The cluster is put into a SQLite file as a whole; no agent is connected.
//!
//! `cargo bench -p server --bench root -- [NODES] [SECONDS]`
#![expect(clippy::print_stdout, reason = "the figures are this program's output")]

use anyhow::{Context, Result, bail, ensure};
use proto::{
    key::PublicKey,
    root::RootSecret,
    session::Facts,
    statement::{Membership, NetworkId, NodeId, Statement},
    time::UnixTime,
};
use serde_json::Value;
use server::{
    cluster::{Founding, Node, SetupKeyId, Snapshot, StoredRoot},
    follow::Cluster,
    store::{self, DatabaseUrl, Imported, Missing, Occupied},
};
use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::Path,
    process::{Child, Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

const NODES: u32 = 10_000;
const SECONDS: u64 = 60;

/// The server that runs, killed when this ends.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

fn main() -> Result<()> {
    // Cargo adds `--bench`.
    let mut numbers = std::env::args().skip(1).filter(|argument| argument != "--bench");
    let nodes: u32 = numbers.next().map_or(Ok(NODES), |text| text.parse()).context("NODES is a number")?;
    let seconds: u64 =
        numbers.next().map_or(Ok(SECONDS), |text| text.parse()).context("SECONDS is a number")?;
    let directory = tempfile::tempdir()?;
    let fill = fill(directory.path(), nodes);
    tokio::runtime::Runtime::new()?.block_on(fill)?;
    let begun_at = Instant::now();
    let rotated = show(directory.path(), "rotate")?;
    println!("server root rotate: {:?} with {nodes} nodes", begun_at.elapsed());
    ensure!(left(&rotated)? == u64::from(nodes), "not everything is to be signed anew");
    let _server = start(directory.path())?;
    pace(directory.path(), u64::from(nodes), Duration::from_secs(seconds))
}

/// From the first batch on, since the server waits before it.
fn pace(directory: &Path, nodes: u64, span: Duration) -> Result<()> {
    let begun_at = Instant::now();
    let mut first: Option<(Instant, u64)> = None;
    let mut last = (begun_at, nodes);
    while begun_at.elapsed() < span && last.1 > 0 {
        sleep(Duration::from_millis(500));
        let left = left(&show(directory, "show")?)?;
        if left < last.1 {
            last = (Instant::now(), left);
            first.get_or_insert(last);
        }
    }
    let (first_at, first_left) = first.context("nothing was signed anew: give it more SECONDS")?;
    let (took, signed) = (last.0 - first_at, first_left - last.1);
    if signed == 0 {
        bail!("one batch only was signed anew: give it more SECONDS");
    }
    let each = took.as_secs_f64() / signed as f64;
    println!(
        "{signed} signed anew in {took:?}: {:.1} a second, {:.0} min for {nodes}",
        1.0 / each,
        each * nodes as f64 / 60.0
    );
    Ok(())
}

/// A cluster of so many nodes.
async fn fill(directory: &Path, nodes: u32) -> Result<()> {
    let url = DatabaseUrl::Sqlite(directory.join("holdfast.db"));
    let store = Cluster::open(store::open(&url, Missing::Create).await?).await?.store().clone();
    let mut snapshot: Snapshot = store.snapshot().await?;
    let Founding { network_id, root: StoredRoot::Plain(root), network } = snapshot.founding.clone() else {
        bail!("a cluster that was just made is not wrapped");
    };
    let of = |number: u32| node(number, network_id, &root, network.overlay_v6);
    snapshot.nodes = (1..=nodes).map(of).collect();
    snapshot.next_node_id = NodeId(u64::from(nodes) + 1);
    let imported = store.import(&snapshot, Occupied::Replace).await?;
    ensure!(imported == Imported::Done, "the cluster was not put in: {imported:?}");
    Ok(())
}

fn node(number: u32, network: NetworkId, root: &RootSecret, overlay: ipnet::IpNet) -> Node {
    let mut key = PublicKey([7; 32]);
    key.0[..4].copy_from_slice(&number.to_be_bytes());
    let address_v4 = Ipv4Addr::from(0x6440_0000 + number);
    let IpAddr::V6(prefix) = overlay.addr() else { unreachable!("a ULA is of IPv6") };
    let address_v6 = Ipv6Addr::from(u128::from(prefix) | u128::from(u32::from(address_v4)));
    let at = UnixTime(1_700_000_000);
    let membership = Membership {
        node_id: NodeId(number.into()),
        node_key: key,
        addresses: vec![address_v4.into(), address_v6.into()],
        claims: Vec::new(),
        issued_at: at,
        not_after: None,
    };
    Node {
        id: membership.node_id,
        key,
        name: format!("n{number}"),
        address_v4,
        address_v6,
        membership: Statement::Membership(membership).sign(network, root),
        issued_at: at,
        not_after: None,
        root: 0,
        confirmed_root: 0,
        expires_at: None,
        created_at: at,
        updated_at: at,
        setup_key: SetupKeyId(1),
        ephemeral: false,
        groups: Vec::new(),
        claims: Vec::new(),
        facts: Facts::default(),
        endpoints: Vec::new(),
    }
}

fn command(directory: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_server"));
    command.args(args).env_clear().env("HOLDFAST_DATA_DIR", directory);
    command
}

fn show(directory: &Path, what: &str) -> Result<Value> {
    let output = command(directory, &["root", what, "--json"]).output()?;
    ensure!(output.status.success(), "root {what}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(serde_json::from_slice(&output.stdout)?)
}

fn left(shown: &Value) -> Result<u64> {
    shown["to_sign_anew"].as_u64().context("no number is left to be signed anew")
}

fn start(directory: &Path) -> Result<Running> {
    let listen = ["run", "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"];
    let mut command = command(directory, &listen);
    Ok(Running(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?))
}
