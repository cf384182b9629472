//! Servers behind a balancer of TCP, as Debian ships them.
//!
//! ```text
//!   agents ── switch ── lb 192.0.2.10:7443 (nginx or HAProxy) ── switch ── s1 192.0.2.11, s2 192.0.2.12
//! ```
//!
//! Agents are given the balancer's address alone. Where the servers advertise themselves, too, agents find a standby beside it; where
//! they advertise nothing but the balancer, agents dial it again until it leads to another server. A gateway that routes by names has one address for many.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use netns_tests::agent::Agent;
use netns_tests::figures::{Bound, Samples};
use netns_tests::mesh::Mesh;
use netns_tests::names::Names;
use netns_tests::process::Process;
use netns_tests::scenario::Scenario;
use netns_tests::server::Server;
use netns_tests::topology::{Host, Port};
use netns_tests::wait::wait_until;

const BALANCER: &str = "192.0.2.10";
const PUBLIC: &str = "192.0.2.10:7443";
const NAMES: [&str; 2] = ["s1.example.net", "s2.example.net"];
const AGENTS: u8 = 4;
/// A balancer may lead to the server that an agent has a few times in a row; then it is asked more rarely.
const TIMEOUT: Duration = Duration::from_secs(60);
/// By a standby, as without a balancer: at once, or by silence.
const TOLD: Duration = Duration::from_millis(100);
const SILENT: Duration = Duration::from_millis(1500);

/// What passes TCP on.
#[derive(Clone, Copy, Debug)]
enum Product {
    Nginx,
    Haproxy,
    /// nginx, by the name that is asked for.
    Gateway,
}

/// What servers say of where they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Advertised {
    /// Their own address beside the balancer's.
    OwnToo,
    /// The balancer's alone.
    Common,
    /// A name of their own that leads to the gateway.
    Name,
}

impl Advertised {
    fn to_agents(self, server: u8) -> String {
        match self {
            Self::OwnToo | Self::Common => PUBLIC.to_owned(),
            Self::Name => format!("{}:7443", NAMES[usize::from(server)]),
        }
    }
}

/// A balancer that runs.
struct Balancer {
    host: Host,
    _port: Port,
    _process: Process,
}

pub(crate) fn nginx_with_servers_of_their_own_address(s: &mut Scenario) -> Result<()> {
    behind(s, Product::Nginx, Advertised::OwnToo)
}

pub(crate) fn haproxy_with_servers_of_their_own_address(s: &mut Scenario) -> Result<()> {
    behind(s, Product::Haproxy, Advertised::OwnToo)
}

pub(crate) fn nginx_alone(s: &mut Scenario) -> Result<()> {
    behind(s, Product::Nginx, Advertised::Common)
}

pub(crate) fn haproxy_alone(s: &mut Scenario) -> Result<()> {
    behind(s, Product::Haproxy, Advertised::Common)
}

/// A gateway that reads the name in the TLS greeting: each server has one, and all names have the gateway's address.
pub(crate) fn gateway_by_names(s: &mut Scenario) -> Result<()> {
    let names = Names::new(&s.directory)?;
    for name in NAMES {
        names.set(name, BALANCER.parse()?)?;
    }
    behind(s, Product::Gateway, Advertised::Name)
}

/// Enrolment, sessions, and each way to lose a server; tunnels lose nothing.
fn behind(s: &mut Scenario, product: Product, advertised: Advertised) -> Result<()> {
    let mut mesh = Mesh::plan(2, 0).server_options(&["--behind-proxy", BALANCER]).database_only(s)?;
    for number in 0..2 {
        let server = mesh.add_server(number)?;
        if advertised != Advertised::OwnToo {
            server.only(&[
                "--listen",
                "--admin-listen",
                "--data-dir",
                "--database",
                "--name",
                "--behind-proxy",
            ]);
        }
        server.add_options(&["--advertise".to_owned(), advertised.to_agents(number)]);
        server.start()?;
    }
    mesh.setup_key = mesh.servers[0].first_setup_key()?;
    let balancer = balancer(s, &mesh, product)?;
    for number in 0..AGENTS {
        let agent = mesh.add_agent(number)?;
        agent.options[1] = advertised.to_agents(number % 2);
        agent.start()?;
    }
    for agent in &mesh.agents {
        agent.wait_now(TIMEOUT, "is served, with its standby and every peer", |status| {
            status.served_by().is_some()
                && status.has_standby()
                && status.peers.len() + 1 == usize::from(AGENTS)
        })?;
    }
    nobody_publishes_the_balancer(&mesh)?;
    let pings = mesh.ping_pairs()?;
    lose(s, &mut mesh, "drained", TOLD, Server::drain, Server::start)?;
    lose(s, &mut mesh, "killed", TOLD, Server::kill, Server::start)?;
    let thaw = |server: &mut Server| server.process()?.thaw();
    lose(s, &mut mesh, "frozen", SILENT, |server| server.process()?.freeze(), thaw)?;
    drop(balancer);
    s.none_lost(pings)
}

/// Takes a server that serves somebody away, and brings it back.
fn lose(
    s: &mut Scenario,
    mesh: &mut Mesh,
    how: &str,
    bound: Duration,
    fail: impl Fn(&mut Server) -> Result<Instant>,
    restore: impl Fn(&mut Server) -> Result<Instant>,
) -> Result<()> {
    let ids: Vec<String> = mesh.servers.iter().map(|server| id(s, server)).collect::<Result<_>>()?;
    let mut moved = Samples::new(format!("{how}: served by the other server"));
    for _ in 0..2 {
        let by: Vec<String> = mesh.agents.iter().map(served_by).collect::<Result<_>>()?;
        let busiest = (0..ids.len()).max_by_key(|i| by.iter().filter(|id| **id == ids[*i]).count());
        let victim = busiest.context("there are servers")?;
        let at = fail(&mut mesh.servers[victim])?;
        for (agent, _) in mesh.agents.iter().zip(&by).filter(|(_, by)| **by == ids[victim]) {
            let (now, _) = agent.wait(at, TIMEOUT, "is served by the other server", |status| {
                status.served_by().is_some_and(|server| server.id != ids[victim])
            })?;
            moved.push(now - at);
        }
        restore(&mut mesh.servers[victim])?;
        for agent in &mesh.agents {
            agent.wait_now(TIMEOUT, "is served, with its standby", |status| {
                status.served_by().is_some() && status.has_standby()
            })?;
        }
    }
    s.figure(&moved, &[Bound::P99(bound)]);
    s.require(moved.len() >= 2, format!("{how}: nobody was served by the server that went"));
    Ok(())
}

fn id(s: &Scenario, server: &Server) -> Result<String> {
    let file = s.directory.join(&server.name).join("server-id");
    Ok(fs::read_to_string(&file).with_context(|| format!("no {}", file.display()))?.trim().to_owned())
}

fn served_by(agent: &Agent) -> Result<String> {
    let status = agent.wait_now(TIMEOUT, "is served", |status| status.served_by().is_some())?;
    Ok(status.served_by().context("it is served")?.id.clone())
}

/// The balancer's address is nobody's endpoint.
fn nobody_publishes_the_balancer(mesh: &Mesh) -> Result<()> {
    let nodes = mesh.servers[0].json(&["node", "list"])?.to_string();
    ensure!(nodes.contains("192.0.2.101:51820"), "no endpoint of a1 in {nodes}");
    ensure!(!nodes.contains(&format!("{BALANCER}:")), "the balancer is published as an endpoint: {nodes}");
    Ok(())
}

fn balancer(s: &Scenario, mesh: &Mesh, product: Product) -> Result<Balancer> {
    let servers: Vec<&str> = mesh.servers.iter().map(|server| server.url.as_str()).collect();
    let directory = s.directory.join("lb");
    fs::create_dir_all(&directory)?;
    let (program, arguments, text) = match product {
        Product::Nginx => ("/usr/sbin/nginx", ["-e", "stderr", "-c"], nginx(&directory, &servers)),
        Product::Gateway => ("/usr/sbin/nginx", ["-e", "stderr", "-c"], gateway(&directory, &servers)),
        Product::Haproxy => ("/usr/sbin/haproxy", ["-db", "-q", "-f"], haproxy(&servers)),
    };
    start(s, mesh, program, &arguments, &text)
}

fn start(s: &Scenario, mesh: &Mesh, program: &str, arguments: &[&str], text: &str) -> Result<Balancer> {
    let host = Host::new("lb")?;
    let port = mesh.switch.attach(&host, &format!("{BALANCER}/24"))?;
    let file = s.directory.join("lb.conf");
    fs::write(&file, text)?;
    let mut command = host.namespace.command(program);
    command.args(arguments).arg(&file);
    let mut process = Process::start("lb", command, &s.directory.join("lb.log"))?;
    let is_up = || {
        let listening = host.namespace.run(|| std::net::TcpStream::connect(PUBLIC).is_ok())?;
        ensure!(process.ended()?.is_none(), "the balancer ended: {}", process.log_tail(5));
        Ok(listening.then_some(()))
    };
    wait_until("the balancer listens", TIMEOUT, is_up)?;
    Ok(Balancer { host, _port: port, _process: process })
}

fn nginx(directory: &std::path::Path, servers: &[&str]) -> String {
    let upstream: String =
        servers.iter().map(|server| format!("server {server} max_fails=1 fail_timeout=2s; ")).collect();
    nginx_stream(directory, &format!("upstream servers {{ {upstream} }}"), "proxy_pass servers;")
}

fn gateway(directory: &std::path::Path, servers: &[&str]) -> String {
    let each: String = NAMES.iter().zip(servers).map(|(name, server)| format!("{name} {server}; ")).collect();
    let map = format!("map $ssl_preread_server_name $server {{ {each} }}");
    nginx_stream(directory, &map, "ssl_preread on; proxy_pass $server;")
}

fn nginx_stream(directory: &std::path::Path, before: &str, pass: &str) -> String {
    format!(
        "load_module /usr/lib/nginx/modules/ngx_stream_module.so;\n\
         daemon off; master_process off; pid {}/nginx.pid;\n\
         events {{ worker_connections 1024; }}\n\
         stream {{\n\
           {before}\n\
           server {{ listen {PUBLIC}; {pass} proxy_connect_timeout 1s; proxy_timeout 1h; }}\n\
         }}\n",
        directory.display()
    )
}

fn haproxy(servers: &[&str]) -> String {
    let backend: String = servers
        .iter()
        .enumerate()
        .map(|(i, server)| {
            format!(
                "  server s{i} {server} check inter 500ms fall 2 rise 1 on-marked-down shutdown-sessions\n"
            )
        })
        .collect();
    format!(
        "defaults\n  mode tcp\n  timeout connect 1s\n  timeout client 1h\n  timeout server 1h\n  retries 3\n  option redispatch 1\n\
         listen holdfast\n  bind {PUBLIC}\n  balance roundrobin\n{backend}"
    )
}

/// A proxy with a certificate of its own, of our kind and of the usual one: refused, and the reason is said.
pub(crate) fn a_proxy_that_terminates_tls_is_refused(s: &mut Scenario) -> Result<()> {
    let mut mesh = Mesh::plan(1, 0).start(s)?;
    let backend = mesh.servers[0].url.clone();
    let key = mesh.setup_key.clone();
    for (number, algorithm) in
        [&["ed25519"][..], &["ec", "-pkeyopt", "ec_paramgen_curve:P-256"]].into_iter().enumerate()
    {
        let certificate = certificate(s, &mesh, algorithm)?;
        let text = format!(
            "defaults\n  mode tcp\n  timeout connect 1s\n  timeout client 1m\n  timeout server 1m\n\
             listen holdfast\n  bind {PUBLIC} ssl crt {} alpn h2\n  server s1 {backend} ssl verify none alpn h2\n",
            certificate.display()
        );
        let balancer = start(s, &mesh, "/usr/sbin/haproxy", &["-db", "-q", "-f"], &text)?;
        let agent = mesh.add_agent(u8::try_from(number)?)?;
        agent.options[1] = PUBLIC.to_owned();
        let output = agent.command(&["up", "--timeout", "5", "--servers", PUBLIC, "--setup-key", &key])?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(
            !output.status.success() && said.contains("terminates TLS"),
            "{algorithm:?}: up said: {said}"
        );
        agent.start()?;
        let status = agent.wait_now(TIMEOUT, "says why", |status| {
            status.control.servers.iter().any(|server| server.last_error.is_some())
        })?;
        let why = status.control.servers.iter().find_map(|server| server.last_error.clone());
        let why = why.unwrap_or_default();
        ensure!(why.contains("terminates TLS"), "{algorithm:?}: status says: {why}");
        s.note(format!("{}: {why}", algorithm[0]));
        ensure!(balancer.host.name == "lb", "the proxy was there");
    }
    Ok(())
}

fn certificate(s: &Scenario, mesh: &Mesh, algorithm: &[&str]) -> Result<PathBuf> {
    let (key, pem) = (s.directory.join("proxy.key"), s.directory.join("proxy.crt"));
    let (key_text, pem_text) = (key.display().to_string(), pem.display().to_string());
    let mut arguments = vec!["req", "-x509", "-nodes", "-newkey"];
    arguments.extend(algorithm);
    arguments.extend([
        "-subj",
        "/CN=vpn.example.com",
        "-days",
        "30",
        "-keyout",
        &key_text,
        "-out",
        &pem_text,
    ]);
    mesh.servers[0].host.namespace.tool("openssl", &arguments)?;
    let both = s.directory.join(format!("{}.pem", algorithm[0]));
    fs::write(&both, fs::read_to_string(&pem)? + &fs::read_to_string(&key)?)?;
    Ok(both)
}
