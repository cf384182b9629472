//! How a command fails: the exit code is a contract, the text says what happened, to what, and what to do.

use crate::{
    config::SettingsError,
    daemon::DaemonError,
    local::{ClientError, Code},
    wg::CallerError,
};
use std::{io, process::ExitCode};

#[derive(Debug)]
pub(super) enum Failure {
    Failed(anyhow::Error),
    Usage(anyhow::Error),
    NotRunning(anyhow::Error),
    NotEnrolled(anyhow::Error),
    /// Whoever read our output has gone: nothing to complain about.
    NobodyReads,
}

impl Failure {
    pub(super) fn failed(error: impl Into<anyhow::Error>) -> Self {
        Self::Failed(error.into())
    }

    pub(super) fn usage(error: impl Into<anyhow::Error>) -> Self {
        Self::Usage(error.into())
    }

    /// As another agent process failed.
    pub(super) fn of_process(code: Option<i32>, error: anyhow::Error) -> Self {
        match code {
            Some(2) => Self::Usage(error),
            Some(4) => Self::NotEnrolled(error),
            Some(_) | None => Self::Failed(error),
        }
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Failed(error) | Self::Usage(error) | Self::NotRunning(error) | Self::NotEnrolled(error) => {
                write!(f, "{error:#}")
            }
            Self::NobodyReads => f.write_str("nobody reads"),
        }
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        match &error {
            ClientError::NotRunning(_) => Self::NotRunning(error.into()),
            ClientError::Refused(refusal) => match refusal.code {
                Code::Failed | Code::Ending => Self::Failed(error.into()),
                Code::Usage => Self::Usage(error.into()),
                Code::NotEnrolled => Self::NotEnrolled(error.into()),
            },
            ClientError::NoPermission(_)
            | ClientError::Io(_)
            | ClientError::Answer(_)
            | ClientError::Ended => Self::Failed(error.into()),
        }
    }
}

impl From<CallerError> for Failure {
    fn from(error: CallerError) -> Self {
        match &error {
            CallerError::NotRunning(_) => Self::NotRunning(error.into()),
            CallerError::NoPermission(_)
            | CallerError::Io { .. }
            | CallerError::UnknownPeer { .. }
            | CallerError::TooMany(_)
            | CallerError::Refused { .. } => Self::Failed(error.into()),
        }
    }
}

impl From<DaemonError> for Failure {
    fn from(error: DaemonError) -> Self {
        match error {
            DaemonError::Settings(error) => error.into(),
            DaemonError::StateDir(_)
            | DaemonError::Key(_)
            | DaemonError::Plane(_)
            | DaemonError::Socket { .. }
            | DaemonError::Refused(_)
            | DaemonError::System { .. } => Self::Failed(error.into()),
        }
    }
}

impl From<SettingsError> for Failure {
    fn from(error: SettingsError) -> Self {
        Self::Usage(error.into())
    }
}

/// Of our own output.
impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        match error.kind() == io::ErrorKind::BrokenPipe {
            true => Self::NobodyReads,
            false => Self::Failed(error.into()),
        }
    }
}

/// Tells what failed, and gives the exit code.
pub(super) fn report(failure: &Failure) -> ExitCode {
    let (code, error) = match failure {
        Failure::Failed(error) => (1, error),
        Failure::Usage(error) => (2, error),
        Failure::NotRunning(error) => (3, error),
        Failure::NotEnrolled(error) => (4, error),
        Failure::NobodyReads => return ExitCode::SUCCESS,
    };
    super::output::complain(&format!("{error:#}"));
    ExitCode::from(code)
}
