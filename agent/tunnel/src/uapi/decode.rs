//! Bytes to requests. Whatever comes, no more is kept than one line and one bounded request, and after a mistake in
//! a `set` the rest of it is read and left alone, so that its sender can finish and read the answer.

use std::{net::SocketAddr, time::Duration};

use ipnet::IpNet;
use zeroize::Zeroize;

use super::{AllowedIpChange, Changes, PeerChanges, Refusal, errno};
use crate::{PresharedKey, PrivateKey, PublicKey, capture::Wanted, socket::leads_somewhere};

/// The longest line that means anything has some 80 bytes.
const MAX_LINE: usize = 1024;
/// Of one request: 100,000 peers with ten lines each.
const MAX_LINES: usize = 1 << 20;
/// Of IP.
const MAX_PACKET: usize = 65_535;

/// What is asked.
#[derive(Debug, Clone)]
pub enum Request {
    Get,
    Set(Box<Changes>),
    /// Ours alone: what goes through the tunnel follows, and nothing more is asked.
    Capture(Wanted),
}

/// One connection's requests.
#[derive(Debug)]
pub struct Decoder {
    zone: fn(&str) -> Option<u32>,
    line: Vec<u8>,
    lines: usize,
    state: State,
}

#[derive(Debug)]
enum State {
    /// Between requests.
    Idle,
    Get,
    Set(Box<Changes>),
    Capture(Wanted),
    /// The request is refused, but not over.
    Refused(Refusal),
    /// Where the next request begins is not known.
    Lost,
}

impl Decoder {
    /// `zone` finds the number of an interface, for link-local endpoints.
    pub fn new(zone: fn(&str) -> Option<u32>) -> Self {
        Self { zone, line: Vec::new(), lines: 0, state: State::Idle }
    }

    /// Takes bytes from `input` until a request is complete or nothing is left of them.
    pub fn next(&mut self, input: &mut &[u8]) -> Option<Result<Request, Refusal>> {
        while let Some((&byte, rest)) = input.split_first() {
            if self.is_lost() {
                *input = &[];
                return None;
            }
            *input = rest;
            if byte != b'\n' {
                self.line.push(byte);
                if self.line.len() <= MAX_LINE {
                    continue;
                }
            }
            let line = std::mem::take(&mut self.line);
            let done = if line.len() > MAX_LINE {
                Some(self.lose(&format!("a line is longer than {MAX_LINE} bytes")))
            } else {
                self.handle_line(&line)
            };
            self.line = line;
            self.line.zeroize();
            if done.is_some() {
                return done;
            }
        }
        None
    }

    /// Nothing that follows can be understood: the connection is of no use any more.
    pub fn is_lost(&self) -> bool {
        matches!(self.state, State::Lost)
    }

    /// Whether a request has begun that is not complete.
    pub fn is_within_request(&self) -> bool {
        !self.line.is_empty() || !matches!(self.state, State::Idle | State::Lost)
    }

    fn lose(&mut self, what: &str) -> Result<Request, Refusal> {
        self.state = State::Lost;
        Err(Refusal::invalid(what))
    }

    fn handle_line(&mut self, line: &[u8]) -> Option<Result<Request, Refusal>> {
        if line.is_empty() {
            return self.finish();
        }
        self.lines += 1;
        match &mut self.state {
            State::Idle => match line {
                b"get=1" => self.state = State::Get,
                b"set=1" => self.state = State::Set(Box::default()),
                b"capture=1" => self.state = State::Capture(Wanted { peer: None, snaplen: MAX_PACKET }),
                _ => return Some(self.lose("an operation is get=1 or set=1")),
            },
            State::Get => return Some(self.lose("get=1 is followed by an empty line")),
            State::Set(_) if self.lines > MAX_LINES => {
                let what = format!("a request has more than {MAX_LINES} lines");
                self.state = State::Refused(Refusal { errno: errno::EMSGSIZE, what });
            }
            State::Set(changes) => {
                if let Err(what) = handle_key(changes, line, self.zone) {
                    self.state = State::Refused(Refusal::invalid(what));
                }
            }
            State::Capture(wanted) => {
                if let Err(what) = handle_capture_key(wanted, line) {
                    self.state = State::Refused(Refusal::invalid(what));
                }
            }
            State::Refused(_) | State::Lost => {}
        }
        None
    }

    fn finish(&mut self) -> Option<Result<Request, Refusal>> {
        self.lines = 0;
        match std::mem::replace(&mut self.state, State::Idle) {
            // Requests may be apart by more than one empty line.
            State::Idle => None,
            State::Get => Some(Ok(Request::Get)),
            State::Set(changes) => Some(Ok(Request::Set(changes))),
            State::Capture(wanted) => Some(Ok(Request::Capture(wanted))),
            State::Refused(refusal) => Some(Err(refusal)),
            State::Lost => {
                self.state = State::Lost;
                None
            }
        }
    }
}

fn handle_key(changes: &mut Changes, line: &[u8], zone: fn(&str) -> Option<u32>) -> Result<(), String> {
    let text = std::str::from_utf8(line).map_err(|_| "a line is not text".to_owned())?;
    let (key, value) = text.split_once('=').ok_or_else(|| "a line is not key=value".to_owned())?;
    let done = match (key, changes.peers.last_mut()) {
        ("public_key", _) => key_bytes(value).map(|bytes| {
            changes.peers.push(PeerChanges::new(PublicKey(bytes)));
        }),
        (_, Some(peer)) => handle_peer_key(peer, key, value, zone)?,
        (_, None) => handle_device_key(changes, key, value)?,
    };
    done.ok_or_else(|| format!("the value of {key} is not valid"))
}

fn handle_capture_key(wanted: &mut Wanted, line: &[u8]) -> Result<(), String> {
    let pair = std::str::from_utf8(line).ok().and_then(|text| text.split_once('='));
    let (key, value) = pair.ok_or_else(|| "a line is not key=value".to_owned())?;
    let done = match key {
        "public_key" => key_bytes(value).map(|bytes| wanted.peer = Some(PublicKey(bytes))),
        "snaplen" => decimal(value).map(|bytes| wanted.snaplen = bytes),
        _ => return Err(unknown(key, "a capture")),
    };
    done.ok_or_else(|| format!("the value of {key} is not valid"))
}

/// `None`: the value is not valid.
fn handle_device_key(changes: &mut Changes, key: &str, value: &str) -> Result<Option<()>, String> {
    Ok(match key {
        "private_key" => key_bytes(value).map(|bytes| {
            changes.private_key = Some((bytes != [0; 32]).then(|| PrivateKey::from(bytes)));
        }),
        "listen_port" => decimal(value).map(|port| changes.listen_port = Some(port)),
        "fwmark" => decimal(value).map(|mark: u32| changes.fwmark = Some((mark != 0).then_some(mark))),
        "replace_peers" => is_true(value).map(|()| changes.replace_peers = true),
        _ => return Err(unknown(key, "the device")),
    })
}

/// `None`: the value is not valid.
fn handle_peer_key(
    peer: &mut PeerChanges,
    key: &str,
    value: &str,
    zone: fn(&str) -> Option<u32>,
) -> Result<Option<()>, String> {
    Ok(match key {
        "remove" => is_true(value).map(|()| peer.remove = true),
        "update_only" => is_true(value).map(|()| peer.update_only = true),
        "preshared_key" => key_bytes(value).map(|bytes| {
            peer.preshared_key = Some((bytes != [0; 32]).then_some(PresharedKey(bytes)));
        }),
        "endpoint" => endpoint(value, zone)
            .filter(|&endpoint| leads_somewhere(endpoint))
            .map(|endpoint| peer.endpoint = Some(endpoint)),
        "persistent_keepalive_interval" => decimal(value).map(|seconds: u16| {
            peer.keepalive = Some((seconds != 0).then(|| Duration::from_secs(seconds.into())));
        }),
        "replace_allowed_ips" => is_true(value).map(|()| peer.allowed_ips.push(AllowedIpChange::Clear)),
        "allowed_ip" => allowed_ip(value).map(|change| peer.allowed_ips.push(change)),
        "protocol_version" => (value == "1").then_some(()),
        _ => return Err(unknown(key, "a peer")),
    })
}

fn unknown(key: &str, of: &str) -> String {
    // What was taken for a key may be anything, a misplaced secret included.
    match key.len() <= 32 && key.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_') {
        true => format!("{of} has no key {key}"),
        false => format!("{of} has no key of that name"),
    }
}

fn is_true(value: &str) -> Option<()> {
    (value == "true").then_some(())
}

/// Digits only: no sign, no blank.
fn decimal<T: std::str::FromStr>(value: &str) -> Option<T> {
    value.bytes().all(|byte| byte.is_ascii_digit()).then(|| value.parse().ok())?
}

/// 64 hexadecimal digits.
fn key_bytes(value: &str) -> Option<[u8; 32]> {
    let digit = |byte: u8| char::from(byte).to_digit(16).map(|digit| digit as u8);
    let mut bytes = [0; 32];
    if value.len() != 2 * bytes.len() {
        return None;
    }
    for (byte, pair) in bytes.iter_mut().zip(value.as_bytes().chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(bytes)
}

/// An address and a port, IPv6 in brackets; names of hosts are the caller's to look up, those of zones are not.
fn endpoint(value: &str, zone: fn(&str) -> Option<u32>) -> Option<SocketAddr> {
    if let Ok(endpoint) = value.parse() {
        return Some(endpoint);
    }
    let (address, rest) = value.strip_prefix('[')?.split_once('%')?;
    let (name, port) = rest.rsplit_once("]:")?;
    format!("[{address}%{}]:{port}", zone(name)?).parse().ok()
}

/// A prefix, or an address that stands for itself; `-` takes it away.
fn allowed_ip(value: &str) -> Option<AllowedIpChange> {
    let (text, removed) = value.strip_prefix('-').map_or((value, false), |rest| (rest, true));
    let prefix = match text.contains('/') {
        true => text.parse::<IpNet>().ok()?,
        false => IpNet::from(text.parse::<std::net::IpAddr>().ok()?),
    };
    let prefix = prefix.trunc();
    Some(if removed { AllowedIpChange::Remove(prefix) } else { AllowedIpChange::Add(prefix) })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const KEY: &str = "b85996fecc9c7f1fc6d2572a76eda11d59bcd20be8e543b15ce4bd85a8e75a33";

    fn decoder() -> Decoder {
        Decoder::new(|name| (name == "eth0").then_some(7))
    }

    fn all(decoder: &mut Decoder, mut input: &[u8]) -> Vec<Result<Request, Refusal>> {
        let mut found = Vec::new();
        while let Some(request) = decoder.next(&mut input) {
            found.push(request);
        }
        found
    }

    fn set(lines: &str) -> Result<Changes, Refusal> {
        let mut found = all(&mut decoder(), format!("set=1\n{lines}\n\n").as_bytes());
        assert_eq!(found.len(), 1, "{lines}");
        match found.remove(0)? {
            Request::Set(changes) => Ok(*changes),
            Request::Get | Request::Capture(_) => panic!("a set"),
        }
    }

    fn peer(lines: &str) -> PeerChanges {
        let mut changes = set(&format!("public_key={KEY}\n{lines}")).unwrap();
        assert_eq!(changes.peers.len(), 1);
        changes.peers.remove(0)
    }

    #[test]
    fn a_capture_is_of_all_peers_or_of_one() {
        let asked =
            |lines: &str| match all(&mut decoder(), format!("capture=1\n{lines}\n").as_bytes()).remove(0) {
                Ok(Request::Capture(wanted)) => Ok(wanted),
                Ok(Request::Get | Request::Set(_)) => panic!("a capture"),
                Err(refusal) => Err(refusal.errno),
            };
        assert_eq!(asked(""), Ok(Wanted { peer: None, snaplen: MAX_PACKET }));
        let wanted = asked(&format!("public_key={KEY}\nsnaplen=100\n")).unwrap();
        assert_eq!((wanted.peer.is_some(), wanted.snaplen), (true, 100));
        for bad in ["snaplen=-1\n", "public_key=1\n", "listen_port=1\n", "x\n"] {
            assert_eq!(asked(bad), Err(errno::EINVAL), "{bad}");
        }
    }

    #[test]
    fn every_key_of_the_device_is_understood() {
        let key = format!("private_key={KEY}");
        let changes = set(&format!("{key}\nlisten_port=51820\nfwmark=51820\nreplace_peers=true")).unwrap();
        assert_eq!(changes.private_key.unwrap().unwrap().0.as_bytes()[..2], [0xb8, 0x59]);
        assert_eq!((changes.listen_port, changes.fwmark), (Some(51_820), Some(Some(51_820))));
        assert!(changes.replace_peers && changes.peers.is_empty());
        let zeros = set(&format!("private_key={}\nfwmark=0\nlisten_port=0", "0".repeat(64))).unwrap();
        assert!(matches!(zeros.private_key, Some(None)));
        assert_eq!((zeros.listen_port, zeros.fwmark), (Some(0), Some(None)));
    }

    #[test]
    fn every_key_of_a_peer_is_understood() {
        let changes = peer(&format!(
            "update_only=true\npreshared_key={KEY}\nendpoint=192.0.2.1:51820\npersistent_keepalive_interval=25\n\
             replace_allowed_ips=true\nallowed_ip=10.0.0.7/8\nallowed_ip=-fd00::1/64\nallowed_ip=10.1.1.1\n\
             protocol_version=1"
        ));
        assert!(changes.update_only && !changes.remove);
        assert_eq!(changes.preshared_key.unwrap().unwrap().0[..2], [0xb8, 0x59]);
        assert_eq!(changes.endpoint, Some("192.0.2.1:51820".parse().unwrap()));
        assert_eq!(changes.keepalive, Some(Some(Duration::from_secs(25))));
        let allowed = [
            AllowedIpChange::Clear,
            AllowedIpChange::Add("10.0.0.0/8".parse().unwrap()),
            AllowedIpChange::Remove("fd00::/64".parse().unwrap()),
            AllowedIpChange::Add("10.1.1.1/32".parse().unwrap()),
        ];
        assert_eq!(changes.allowed_ips, allowed);
        let changes =
            peer(&format!("remove=true\npersistent_keepalive_interval=0\npreshared_key={}", "0".repeat(64)));
        assert!(changes.remove && changes.keepalive == Some(None) && changes.preshared_key == Some(None));
    }

    #[test]
    fn endpoints_may_be_in_a_zone() {
        for (text, expected) in [
            ("[2001:db8::1]:1", "[2001:db8::1]:1"),
            ("[fe80::1%3]:1", "[fe80::1%3]:1"),
            ("[fe80::1%eth0]:1", "[fe80::1%7]:1"),
        ] {
            assert_eq!(peer(&format!("endpoint={text}")).endpoint, Some(expected.parse().unwrap()));
        }
    }

    #[test]
    fn what_is_not_valid_is_refused_and_the_next_request_is_read() {
        for bad in [
            "listen_port=65536",
            "listen_port=",
            "listen_port=+1",
            "fwmark=0x1",
            "fwmark=4294967296",
            "replace_peers=false",
            "private_key=00",
            "colour=green",
            "no equals sign",
            "endpoint=192.0.2.1:1",
            &format!("public_key={}", &KEY[1..]),
            &format!("public_key={}", KEY.replace('b', "g")),
            &format!("public_key={KEY}\nlisten_port=1"),
            &format!("public_key={KEY}\nendpoint=example.org:1"),
            &format!("public_key={KEY}\nendpoint=192.0.2.1:0"),
            &format!("public_key={KEY}\nendpoint=[ff02::1]:1"),
            &format!("public_key={KEY}\nendpoint=[fe80::1%eth9]:1"),
            &format!("public_key={KEY}\npersistent_keepalive_interval=65536"),
            &format!("public_key={KEY}\nallowed_ip=10.0.0.0/33"),
            &format!("public_key={KEY}\nallowed_ip=--10.0.0.0/8"),
            &format!("public_key={KEY}\nprotocol_version=2"),
            &format!("public_key={KEY}\nremove=yes"),
        ] {
            let mut decoder = decoder();
            let found = all(&mut decoder, format!("set=1\n{bad}\nlisten_port=1\n\nget=1\n\n").as_bytes());
            assert_eq!(found.len(), 2, "{bad}");
            assert_eq!(found[0].as_ref().unwrap_err().errno, errno::EINVAL, "{bad}");
            assert!(matches!(found[1], Ok(Request::Get)), "{bad}");
        }
    }

    #[test]
    fn a_refusal_names_the_key_and_never_a_value() {
        let secret = "c".repeat(63);
        let refusal = set(&format!("private_key={secret}")).unwrap_err();
        assert_eq!(refusal.what, "the value of private_key is not valid");
        assert!(!set(&format!("{secret}=1")).unwrap_err().what.contains("ccc"));
    }

    #[test]
    fn other_operations_and_endless_lines_end_the_connection() {
        for hopeless in ["hello\n", "get=2\n", "get=1\nx=y\n", &"x".repeat(100_000)] {
            let mut decoder = decoder();
            let found = all(&mut decoder, hopeless.as_bytes());
            assert_eq!(found.len(), 1, "{hopeless:.20}");
            assert!(found[0].is_err() && decoder.is_lost());
            assert!(all(&mut decoder, b"\n\nget=1\n\n").is_empty());
        }
    }

    #[test]
    fn a_request_has_so_many_lines_and_no_more() {
        let mut decoder = decoder();
        assert!(all(&mut decoder, b"set=1\n").is_empty());
        let line = b"listen_port=1\n".repeat(1000);
        for _ in 0..=MAX_LINES / 1000 {
            assert!(all(&mut decoder, &line).is_empty());
        }
        assert_eq!(all(&mut decoder, b"\n")[0].as_ref().unwrap_err().errno, errno::EMSGSIZE);
    }

    #[test]
    fn a_half_request_is_known_as_such() {
        let mut decoder = decoder();
        for (bytes, within) in
            [("\n", false), ("se", true), ("t=1\n", true), ("fwmark=1\n", true), ("\n", false)]
        {
            all(&mut decoder, bytes.as_bytes());
            assert_eq!(decoder.is_within_request(), within, "after {bytes:?}");
        }
    }

    proptest! {
        #[test]
        fn how_the_bytes_are_cut_makes_no_difference(
            cuts in proptest::collection::vec(1usize..40, 1..40),
            ports in proptest::collection::vec(0u32..70_000, 1..5),
        ) {
            let text: String = ports
                .iter()
                .map(|port| format!("set=1\nlisten_port={port}\npublic_key={KEY}\nallowed_ip=10.0.0.0/8\n\nget=1\n\n"))
                .collect();
            let whole: Vec<String> =
                all(&mut decoder(), text.as_bytes()).iter().map(|request| format!("{request:?}")).collect();
            let (mut pieces, mut rest, mut decoder) = (Vec::new(), text.as_bytes(), decoder());
            for cut in cuts.iter().cycle() {
                let (piece, after) = rest.split_at((*cut).min(rest.len()));
                pieces.extend(all(&mut decoder, piece).iter().map(|request| format!("{request:?}")));
                rest = after;
                if rest.is_empty() {
                    break;
                }
            }
            prop_assert_eq!(whole.len(), 2 * ports.len());
            prop_assert_eq!(whole, pieces);
        }

        #[test]
        fn no_bytes_whatsoever_make_it_panic_or_keep_more_than_a_line(
            bytes in proptest::collection::vec(any::<u8>(), 0..4096),
        ) {
            let mut decoder = decoder();
            all(&mut decoder, b"set=1\n");
            all(&mut decoder, &bytes);
            prop_assert!(decoder.line.len() <= MAX_LINE);
        }
    }
}
