//! What cannot be claimed: refused by the command line, the file and the server, each with its reason; and what a member gets that claims it all the same.
//!
//! ```text
//!   s1 ── switch ── a1, a2 (a ping every 5 ms between them), x (a member that claims what is not its own)
//! ```

use std::net::{IpAddr, SocketAddr};
use std::process::Output;

use anyhow::{Context, Result, ensure};
use ipnet::IpNet;
use netns_tests::client::{Member, within};
use netns_tests::mesh::{Mesh, ping};
use netns_tests::scenario::Scenario;
use proto::claim::Claim;
use proto::session::{AgentMessage, Facts};
use proto::setup_key::SetupKey;

const WRONG_USAGE: i32 = 2;
/// With what each is refused.
const UNCLAIMABLE: [(&str, &str); 6] = [
    ("0.0.0.0/0", "exit node"),
    ("::/0", "exit node"),
    ("127.0.0.0/8", "loopback"),
    ("::1", "loopback"),
    ("224.0.0.0/4", "multicast"),
    ("ff02::1", "multicast"),
];

pub(crate) fn are_refused(s: &mut Scenario) -> Result<()> {
    let mesh = Mesh::plan(1, 2).start(s)?;
    let (server, agent) = (&mesh.servers[0], &mesh.agents[0]);
    let own = agent.status()?.own.addresses.first().cloned().context("it has an address")?;
    for (prefix, reason) in UNCLAIMABLE {
        refused(&agent.command(&["set", "--claim", prefix])?, Some(WRONG_USAGE), &[reason])?;
        refused(&server.command(&["node", "allow-claim", "a1", prefix])?, None, &[reason])?;
        refused(&server.command(&["setup-key", "create", "--claims", prefix])?, None, &[reason])?;
    }
    let meant = ["10.1.0.0/24 or 10.1.0.7/32 is meant"];
    for command in [
        &["node", "allow-claim", "a1", "10.1.0.7/24"][..],
        &["node", "disallow-claim", "a1", "10.1.0.7/24"],
        &["setup-key", "create", "--claims", "10.2.0.0/24,10.1.0.7/24"],
    ] {
        refused(&server.command(command)?, Some(WRONG_USAGE), &meant)?;
    }
    refused(&server.command(&["node", "allow-claim", "a2", "100.64.0.0/10"])?, None, &["overlay"])?;
    refused(&server.command(&["node", "allow-claim", "a2", &own])?, None, &["a1"])?;
    let contradictory = ["set", "--claim", "10.9.0.1@1", "--claim", "10.9.0.1@2"];
    refused(&agent.command(&contradictory)?, Some(WRONG_USAGE), &["10.9.0.1/32", "two priorities"])?;
    for (line, words) in [
        ("claim = ['0.0.0.0/0']", ["claim", "exit node"]),
        ("claim = ['10.9.0.1@1', '10.9.0.1@2']", ["10.9.0.1/32", "two priorities"]),
        ("claim = ['none', '10.9.0.1']", ["none", "10.9.0.1/32"]),
        ("claim = '10.1.0.1/24'", ["10.1.0.0/24", "10.1.0.1/32"]),
    ] {
        let file = s.directory.join("agent.toml");
        std::fs::write(&file, line)?;
        let path = file.to_str().context("a path in ASCII")?;
        refused(&agent.command(&["up", "--config", path, "--timeout", "5"])?, Some(WRONG_USAGE), &words)?;
    }
    ensure!(agent.status()?.own.claims.is_empty(), "a refused claim was kept");
    Ok(())
}

/// It was granted a part of the overlay in which others have their own addresses, and claims those alone; then what nobody may; then one prefix twice.
pub(crate) fn of_a_hostile_member(s: &mut Scenario) -> Result<()> {
    let mesh = Mesh::plan(1, 2).start(s)?;
    let pinger = ping(&mesh.agents[0], &mesh.agents[1])?;
    let victim: IpAddr = mesh.agents[1].status()?.own.addresses.first().context("an address")?.parse()?;
    let around = IpNet::new(victim, 24)?.trunc();
    let x = mesh.bystander("x", 0)?;
    let server: SocketAddr = mesh.servers[0].url.parse()?;
    let key: SetupKey = mesh.setup_key.parse()?;
    within(&x.namespace, || async {
        let member = Member::new("hostile")?;
        member.join(server, &key).await?;
        let output = mesh.servers[0].command(&["node", "allow-claim", "hostile", &around.to_string()])?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let mut talk = member.serving(server, key.fingerprint, 1).await?;
        let honest = around.hosts().last().context("a /24 has addresses")?;
        let bad = ["0.0.0.0/0", "127.0.0.0/8", "224.0.0.0/4", "100.64.0.0/10", "10.0.0.0/8"];
        let bad = bad.into_iter().map(str::parse).collect::<Result<Vec<IpNet>, _>>()?;
        let claimed = bad.into_iter().chain([IpNet::from(victim), IpNet::from(honest)]);
        talk.say(update(claimed.map(Claim::new).collect()))?;
        talk.said_so_far().await?;
        let honest = IpNet::from(honest).to_string();
        for agent in &mesh.agents {
            let status = agent.wait_now(crate::shared::TIMEOUT, "hears what was granted", |status| {
                status.claims.iter().any(|claim| claim.prefix == honest)
            })?;
            let claimed: Vec<&str> = status.claims.iter().map(|claim| claim.prefix.as_str()).collect();
            ensure!(claimed == [honest.as_str()], "{} believes in {claimed:?}", agent.name);
        }
        let twice = Claim::new(IpNet::from(victim));
        talk.say(update(vec![twice, Claim { priority: 7, ..twice }]))?;
        let ended = talk.said_so_far().await;
        ensure!(ended.is_err(), "a session with contradictory claims went on");
        Ok(())
    })?;
    s.none_lost(vec![pinger])
}

fn update(claims: Vec<Claim>) -> AgentMessage {
    let facts = Facts {
        hostname: "hostile".into(),
        os: "linux".into(),
        os_version: "12".into(),
        agent_version: "0.1.0".into(),
        claims,
    };
    AgentMessage::Update { facts, endpoints: Vec::new() }
}

fn refused(output: &Output, code: Option<i32>, words: &[&str]) -> Result<()> {
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(!output.status.success() && !said.contains("panicked"), "{words:?}: {}: {said}", output.status);
    ensure!(code.is_none_or(|code| output.status.code() == Some(code)), "{}: {said}", output.status);
    words.iter().try_for_each(|word| {
        ensure!(said.contains(word), "the error does not say {word:?}: {said}");
        Ok(())
    })
}
