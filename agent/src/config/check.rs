//! What says that a node's service is well, as people write it: `tcp:80`, `tcp:HOST:PORT`, `cmd:COMMAND`; `none` takes back what was given before. And commands that are told who uses it.

use serde::{Serialize, Serializer};
use std::{fmt, str::FromStr};

/// The longest command line, bytes.
const MAX_COMMAND: usize = 4096;
/// Where a port alone is asked for.
const LOCALHOST: &str = "localhost";

/// One entry of `--claim-check`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum CheckRule {
    None,
    Check(Check),
}

/// What must work for claims to be served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Check {
    /// A connection is accepted.
    Tcp { host: String, port: u16 },
    /// A line of the shell ends with exit code 0.
    Command(CommandLine),
}

/// A line of the shell. What it says may be secret, so it is not shown.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct CommandLine(pub(crate) String);

/// `--on-serving` and `--on-idle`: a command, or `none`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Hook(pub(crate) Option<CommandLine>);

impl FromStr for CheckRule {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim();
        match text.split_once(':') {
            None if text == "none" => Ok(Self::None),
            Some(("tcp", target)) => tcp(target).map(Self::Check),
            Some(("cmd", line)) => Ok(Self::Check(Check::Command(line.parse()?))),
            Some(_) | None => Err("a check is tcp:PORT, tcp:HOST:PORT or cmd:COMMAND".into()),
        }
    }
}

fn tcp(target: &str) -> Result<Check, String> {
    let (host, port) = target.rsplit_once(':').unwrap_or((LOCALHOST, target));
    let port = port.parse().ok().filter(|port| *port != 0);
    let port = port.ok_or_else(|| format!("tcp:{target} has no port: a number from 1 to 65535"))?;
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    match host.is_empty() || host.len() > 253 || host.contains(|c: char| c.is_whitespace() || c.is_control())
    {
        true => Err(format!("tcp:{target} has no host: write tcp:PORT, tcp:HOST:PORT or tcp:[IPV6]:PORT")),
        false => Ok(Check::Tcp { host: host.to_owned(), port }),
    }
}

impl FromStr for CommandLine {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim();
        match (text.len(), text.contains('\0')) {
            (0, _) => Err("the command is empty".into()),
            (_, true) => Err("the command holds a zero byte".into()),
            (1..=MAX_COMMAND, false) => Ok(Self(text.to_owned())),
            (length, false) => Err(format!(
                "the command has {length} bytes, at most {MAX_COMMAND}: put it into a file, and give that"
            )),
        }
    }
}

impl CommandLine {
    /// The program, without what is put into its environment, and without its arguments.
    pub(crate) fn shown(&self) -> String {
        let mut rest = self.0.as_str();
        loop {
            let (word, after) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
            match word.split_once('=').filter(|(name, _)| is_name(name)) {
                // A word may go on behind a space.
                Some((name, value)) if after.is_empty() || value.contains(is_special) => {
                    return format!("{name}=..");
                }
                Some(_) => rest = after.trim_start(),
                None => {
                    let program = word.split(is_special).next().unwrap_or_default();
                    return if program == rest { program.to_owned() } else { format!("{program} ..") };
                }
            }
        }
    }
}

fn is_name(word: &str) -> bool {
    !word.is_empty() && word.chars().all(|c| c == '_' || c.is_ascii_alphanumeric())
}

/// To the shell.
fn is_special(c: char) -> bool {
    "'\"\\$`;&|<>()".contains(c)
}

impl fmt::Debug for CommandLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown())
    }
}

impl FromStr for Hook {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.trim() {
            "none" => Ok(Self(None)),
            line => line.parse().map(|line| Self(Some(line))),
        }
    }
}

impl Check {
    /// For people.
    pub(crate) fn name(&self) -> String {
        match self {
            Self::Tcp { host, port } if host == LOCALHOST => format!("tcp:{port}"),
            Self::Tcp { host, port } if host.contains(':') => format!("tcp:[{host}]:{port}"),
            Self::Tcp { host, port } => format!("tcp:{host}:{port}"),
            Self::Command(line) => format!("cmd:{}", line.shown()),
        }
    }
}

/// As it is kept, in full.
impl Serialize for CheckRule {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::None => serializer.serialize_str("none"),
            Self::Check(Check::Command(line)) => serializer.collect_str(&format_args!("cmd:{}", line.0)),
            Self::Check(check @ Check::Tcp { .. }) => serializer.serialize_str(&check.name()),
        }
    }
}

impl Serialize for Hook {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.0.as_ref().map_or("none", |line| &line.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_check_is_a_port_a_host_with_a_port_or_a_command() {
        for (text, written) in [
            ("tcp:80", "\"tcp:80\""),
            (" tcp:localhost:80", "\"tcp:80\""),
            ("tcp:db.example:5432", "\"tcp:db.example:5432\""),
            ("tcp:[fd00::1]:53", "\"tcp:[fd00::1]:53\""),
            ("cmd: test -f /x, || curl a:b ", "\"cmd:test -f /x, || curl a:b\""),
            ("none", "\"none\""),
        ] {
            let rule: CheckRule = text.parse().unwrap();
            assert_eq!(serde_json::to_string(&rule).unwrap(), written);
            assert_eq!(written.trim_matches('"').parse(), Ok(rule));
        }
    }

    #[test]
    fn what_is_no_check_is_refused_with_what_to_write() {
        for (text, reason) in [
            ("", "a check is"),
            ("80", "a check is"),
            ("http:80", "a check is"),
            ("tcp:", "no port"),
            ("tcp:0", "no port"),
            ("tcp:65536", "no port"),
            ("tcp:host:", "no port"),
            ("tcp::80", "no host"),
            ("tcp:[]:80", "no host"),
            ("tcp:a b:80", "no host"),
            ("cmd:", "empty"),
            ("cmd:a\0b", "zero byte"),
        ] {
            let error = text.parse::<CheckRule>().unwrap_err();
            assert!(error.contains(reason), "{text}: {error}");
        }
        let long = format!("cmd:{}", "x".repeat(MAX_COMMAND + 1)).parse::<CheckRule>().unwrap_err();
        assert!(long.contains("4097 bytes"), "{long}");
        assert!("".parse::<Hook>().unwrap_err().contains("empty"));
    }

    #[test]
    fn arguments_of_a_command_may_be_secret_and_are_not_shown() {
        let rule: CheckRule = "cmd:/usr/bin/curl -u me:secret http://x/".parse().unwrap();
        let CheckRule::Check(check) = &rule else { panic!("a check") };
        assert_eq!(check.name(), "cmd:/usr/bin/curl ..");
        assert!(!format!("{rule:?}").contains("secret"));
        for (line, shown) in [
            ("PGPASSWORD=secret pg_isready", "pg_isready"),
            ("A=1 PGPASSWORD=secret pg_isready -h db", "pg_isready .."),
            ("PGPASSWORD='my secret' pg_isready", "PGPASSWORD=.."),
            ("PGPASSWORD=secret", "PGPASSWORD=.."),
            ("true;PGPASSWORD=secret pg_isready", "true .."),
            ("/usr/bin/check", "/usr/bin/check"),
        ] {
            assert_eq!(CommandLine(line.to_owned()).shown(), shown, "{line}");
        }
    }
}
