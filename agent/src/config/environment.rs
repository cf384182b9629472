//! Settings from the environment: `HOLDFAST_PEER_TIMEOUT=3s` is `--peer-timeout 3s`, read by the same parser.

use super::Options;
use clap::{Args, Command, FromArgMatches};

pub(crate) const PREFIX: &str = "HOLDFAST_";

/// A variable holds what its option does not take.
#[derive(Debug, thiserror::Error)]
#[error("environment variable {variable}: {reason}")]
pub(crate) struct EnvironmentError {
    variable: String,
    reason: String,
}

/// `variable` looks one up. An empty one counts as not set, as is usual in unit files and containers.
pub(crate) fn from_environment(
    variable: impl Fn(&str) -> Option<String>,
) -> Result<Options, EnvironmentError> {
    let command = Options::augment_args(Command::new("agent").no_binary_name(true));
    let mut options = Options::default();
    for argument in command.get_arguments() {
        let Some(long) = argument.get_long() else { continue };
        let name = format!("{PREFIX}{}", long.to_ascii_uppercase().replace('-', "_"));
        let Some(value) = variable(&name).filter(|value| !value.is_empty()) else { continue };
        let many = matches!(argument.get_action(), clap::ArgAction::Append);
        let values = if many { split(long, &value) } else { vec![&*value] };
        let flags = values.iter().map(|value| format!("--{long}={}", value.trim()));
        let layer = command.clone().try_get_matches_from(flags).and_then(|m| Options::from_arg_matches(&m));
        let layer = layer.map_err(|error| EnvironmentError { reason: reason(&error), variable: name })?;
        options = options.or(&layer);
    }
    Ok(options)
}

/// At commas. A command may hold some: a check begins behind one only where it looks like a check.
fn split<'v>(long: &str, value: &'v str) -> Vec<&'v str> {
    if long != "claim-check" {
        return value.split(',').collect();
    }
    let begins = |rest: &str| {
        let rest = rest.trim_start();
        ["tcp:", "cmd:"].iter().any(|kind| rest.starts_with(kind)) || rest.trim_end() == "none"
    };
    let commas = value.match_indices(',').map(|(at, _)| at).filter(|at| begins(&value[at + 1..]));
    let (mut values, mut from) = (Vec::new(), 0);
    for comma in commas {
        values.push(&value[from..comma]);
        from = comma + 1;
    }
    values.push(&value[from..]);
    values
}

/// clap's message without its own "error:" and usage lines.
fn reason(error: &clap::Error) -> String {
    let text = error.to_string();
    let first = text.lines().next().unwrap_or_default();
    first.strip_prefix("error: ").unwrap_or(first).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(variables: &[(&str, &str)]) -> Result<Options, EnvironmentError> {
        from_environment(|name| {
            variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn variables_are_named_like_flags_and_lists_are_split() {
        let found = read(&[
            ("HOLDFAST_SERVERS", "a,b"),
            ("HOLDFAST_PEER_MODE", "always, lazy=x"),
            ("HOLDFAST_KEEPALIVE", ""),
            ("HOLDFAST_CLAIM", "10.1.0.0/24@7,10.99.0.1"),
            ("HOLDFAST_CLAIM_CHECK", "tcp:80, cmd:test a,b -o c,tcp:h:1"),
            ("HOLDFAST_ON_SERVING", "echo a,b"),
            ("HOLDFAST_SPREAD", "true"),
            ("HOLDFAST_ACCEPT_ROUTES", "false"),
            ("HOLDFAST_SOMETHING_ELSE", "1"),
        ]);
        let expected: Options =
            toml::from_str("servers = ['a', 'b']\npeer-mode = ['always', 'lazy=x']\nclaim = ['10.1.0.0/24@7', '10.99.0.1/32']\nspread = true\naccept-routes = false\n\
                claim-check = ['tcp:80', 'cmd:test a,b -o c', 'tcp:h:1']\non-serving = 'echo a,b'").unwrap();
        assert_eq!(found.unwrap(), expected);
    }

    #[test]
    fn a_bad_value_names_its_variable() {
        let error = read(&[("HOLDFAST_PEER_TIMEOUT", "soon")]).unwrap_err().to_string();
        assert!(error.contains("HOLDFAST_PEER_TIMEOUT") && error.contains("soon"), "{error}");
    }
}
