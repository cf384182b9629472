//! The command line's end of the local socket.

use super::{Refusal, Request};
use crate::{
    platform::{self, LocalStream},
    state_dir::socket_path,
};
use serde::{Deserialize, de::DeserializeOwned};
use std::{
    io,
    path::{Path, PathBuf},
};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};

/// Where the agent of a state directory listens.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    directory: PathBuf,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum ClientError {
    #[error("no agent runs on the state directory {}; start one with `agent up`", .0.display())]
    NotRunning(PathBuf),
    #[error("no permission to speak to the agent of {}: be root, or the user who runs it", .0.display())]
    NoPermission(PathBuf),
    #[error("the agent cannot be asked: {0}")]
    Io(#[from] io::Error),
    #[error("the agent answered what this program does not understand ({0}); are both of one version?")]
    Answer(#[from] serde_json::Error),
    #[error("the agent ended before it answered")]
    Ended,
    #[error(transparent)]
    Refused(#[from] Refusal),
}

#[derive(Deserialize)]
struct Failure {
    error: Refusal,
}

impl Client {
    pub(crate) fn new(directory: &Path) -> Self {
        Self { directory: directory.to_owned() }
    }

    async fn connect(&self) -> Result<LocalStream, ClientError> {
        let connected = platform::connect_local(&socket_path(&self.directory)).await;
        connected.map_err(|error| {
            if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) {
                ClientError::NotRunning(self.directory.clone())
            } else if error.kind() == io::ErrorKind::PermissionDenied {
                ClientError::NoPermission(self.directory.clone())
            } else {
                error.into()
            }
        })
    }

    /// Sends a request; its answers are read from what is returned.
    pub(crate) async fn ask(&self, request: &Request) -> Result<Watch, ClientError> {
        let mut stream = self.connect().await?;
        let mut line = serde_json::to_vec(request)?;
        line.push(b'\n');
        stream.write_all(&line).await?;
        Ok(Watch { stream: BufReader::new(stream) })
    }

    /// One request, one answer.
    pub(crate) async fn call<T: DeserializeOwned>(&self, request: &Request) -> Result<T, ClientError> {
        let line = self.ask(request).await?.next_line().await?.ok_or(ClientError::Ended)?;
        Ok(serde_json::from_str(&line)?)
    }
}

/// The answers to one request.
#[derive(Debug)]
pub(crate) struct Watch {
    stream: BufReader<LocalStream>,
}

impl Watch {
    /// What follows the answer, where that is no line.
    pub(crate) async fn into_stream(mut self) -> Result<BufReader<LocalStream>, ClientError> {
        self.next_line().await?.ok_or(ClientError::Ended)?;
        Ok(self.stream)
    }

    /// The next answer as it came; `None` when the agent has ended.
    pub(crate) async fn next_line(&mut self) -> Result<Option<String>, ClientError> {
        let mut line = String::new();
        match self.stream.read_line(&mut line).await {
            Ok(0) => return Ok(None),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(None),
            Err(error) => return Err(error.into()),
        }
        if line.starts_with("{\"error\":") {
            return Err(serde_json::from_str::<Failure>(&line)?.error.into());
        }
        line.truncate(line.trim_end().len());
        Ok(Some(line))
    }
}
