//! The data plane as `agent wg` runs it, without the agent: makes the interface and is configured by `wg`. With `--filter all` every packet
//! is judged as in the mesh, by one rule that lets all pass; with `--filter mesh` by hundreds, of which the last let pass what measuring needs. `--workers N` as with the
//! agent, but one by default. For measuring, `make bench-tunnel`: built with the compiler's flag `--cfg holdfast_copy_instead_of_aead` it copies packets in the
//! clear instead of encrypting them, and says so.
//!
//!     cargo run --release -p agent-tunnel --example endpoint -- wg0

#![allow(clippy::print_stdout)]

use std::{
    fs,
    io::{self, Read, Write},
    os::unix::net::{UnixListener, UnixStream},
    path::Path,
};

use agent_tunnel::{
    Config, DEFAULT_MTU, Device, Event, Policy, Protocol, Rule, Service, Tunnel, WantedWorkers, Workers,
    uapi::{self, Decoder, Request, errno},
};

const SOCKETS: &str = "/var/run/wireguard";

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

fn main() -> Result<()> {
    let Arguments { name, workers, filter } = Arguments::parse()?;
    if cfg!(holdfast_copy_instead_of_aead) {
        println!("NOTHING IS ENCRYPTED: this program measures what encryption costs");
    }
    let config = Config {
        private_key: None,
        policy: Policy::WireGuard,
        device: Device::create_down_for(WantedWorkers::Exactly(workers), &name, DEFAULT_MTU)?,
        listen_port: 0,
        fwmark: None,
        addresses: Vec::new(),
        message_port: None,
        filter,
    };
    let tunnel = agent_tunnel::start(config, |event| {
        if matches!(event, Event::Fault { .. } | Event::Gone { .. }) {
            std::process::exit(1);
        }
    })?;
    fs::create_dir_all(SOCKETS)?;
    for caller in listen(&Path::new(SOCKETS).join(format!("{name}.sock")))?.incoming() {
        // A caller that leaves early harms nobody else.
        let _ = converse(caller?, &tunnel);
    }
    Ok(())
}

const USAGE: &str = "usage: endpoint INTERFACE [--workers N] [--filter all|mesh]";

struct Arguments {
    name: String,
    workers: Workers,
    filter: Option<Vec<Rule>>,
}

impl Arguments {
    fn parse() -> Result<Self> {
        let mut words = std::env::args().skip(1);
        let name = words.next().ok_or(USAGE)?;
        let mut arguments = Self { name, workers: Workers::ONE, filter: None };
        while let Some(option) = words.next() {
            match (option.as_str(), words.next().as_deref()) {
                ("--workers", Some(count)) => arguments.workers = count.parse()?,
                ("--filter", Some("all")) => arguments.filter = Some(vec![Rule::all()]),
                ("--filter", Some("mesh")) => arguments.filter = Some(mesh_rules()?),
                _ => return Err(USAGE.into()),
            }
        }
        Ok(arguments)
    }
}

/// Two hundred networks that nobody here is in, and two hundred services for 198.18.0.0/24 of which iperf3's is the last; pings, and
/// datagrams to high ports.
fn mesh_rules() -> Result<Vec<Rule>> {
    let rule = |source: &str, protocol, ports| -> Result<Rule> {
        let services = vec![Service { protocol, ports }];
        Ok(Rule { sources: vec![source.parse()?], destinations: Vec::new(), services })
    };
    let here = "198.18.0.0/24";
    let mut rules = Vec::new();
    for number in 0..200u16 {
        let protocol = if number.is_multiple_of(2) { Protocol::Tcp } else { Protocol::Udp };
        let ports = vec![443..=443, 8000 + number..=8000 + number];
        rules.push(rule(&format!("100.64.{number}.0/24"), protocol, ports.clone())?);
        rules.push(rule(here, protocol, ports)?);
    }
    rules.push(rule(here, Protocol::Icmp, Vec::new())?);
    rules.push(rule(here, Protocol::Tcp, vec![5201..=5201])?);
    rules.push(rule(here, Protocol::Udp, vec![5201..=5201, 20_000..=29_999])?);
    Ok(rules)
}

/// The file appears under its name when it can be connected to: `wg` deletes those that cannot.
fn listen(path: &Path) -> Result<UnixListener> {
    let new = path.with_extension("new");
    let _ = fs::remove_file(&new);
    let listener = UnixListener::bind(&new)?;
    fs::rename(&new, path)?;
    Ok(listener)
}

fn converse(mut caller: UnixStream, tunnel: &Tunnel) -> io::Result<()> {
    let mut decoder = Decoder::new(|_| None);
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let len = caller.read(&mut buffer)?;
        let mut input = &buffer[..len];
        if input.is_empty() {
            return Ok(());
        }
        while let Some(request) = decoder.next(&mut input) {
            let done = request.and_then(|request| carry_out(request, tunnel));
            if let Ok(text) = &done {
                caller.write_all(text.as_bytes())?;
            }
            caller.write_all(uapi::answer(&done.map(drop)).as_bytes())?;
        }
    }
}

fn carry_out(request: Request, tunnel: &Tunnel) -> std::result::Result<String, uapi::Refusal> {
    let refusal = |what: String| uapi::Refusal { errno: errno::EIO, what };
    match request {
        Request::Get => {
            let description = tunnel.describe().ok_or_else(|| refusal("the interface is gone".into()))?;
            Ok(description.to_text().to_string())
        }
        Request::Capture(_) => Err(refusal("`agent` captures, not this example".into())),
        Request::Set(changes) => {
            tunnel.configure(*changes).map(|()| String::new()).map_err(|error| refusal(error.to_string()))
        }
    }
}
