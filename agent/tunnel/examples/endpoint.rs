//! The data plane as `agent wg` runs it, without the agent: makes the interface and is configured by `wg`. `--filter` has every packet
//! judged as in the mesh, and lets all pass. For measuring, `make bench-tunnel`: built with the compiler's flag `--cfg holdfast_copy_instead_of_aead` it copies packets in the
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
    Config, DEFAULT_MTU, Device, Event, Policy, Rule, Tunnel,
    uapi::{self, Decoder, Request, errno},
};

const SOCKETS: &str = "/var/run/wireguard";

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (name, is_filtered) = match arguments.as_slice() {
        [name] => (name, false),
        [name, option] if option == "--filter" => (name, true),
        _ => return Err("usage: endpoint INTERFACE [--filter]".into()),
    };
    if cfg!(holdfast_copy_instead_of_aead) {
        println!("NOTHING IS ENCRYPTED: this program measures what encryption costs");
    }
    let config = Config {
        private_key: None,
        policy: Policy::WireGuard,
        device: Device::create_down(name, DEFAULT_MTU)?,
        listen_port: 0,
        fwmark: None,
        addresses: Vec::new(),
        message_port: None,
        filter: is_filtered.then(|| vec![Rule::all()]),
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
