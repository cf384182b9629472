//! `agent daemon`: the agent itself, in this process. `up` starts one where none runs, and hands settings and setup key over on standard input, where no
//! other process can see them.

use super::{Context, Global, failure::Failure, setup_key};
use crate::{
    config::Options,
    daemon::{self, Launch},
    local::SecretKey,
    platform,
};
use serde::{Deserialize, Serialize};
use std::io::{self, BufRead};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    options: Options,
    /// For the first start: a setup key, or the file that contains it
    #[arg(long, value_name = "KEY|file:PATH", env = "HOLDFAST_SETUP_KEY", hide_env = true)]
    setup_key: Option<String>,
    /// Read a handover from standard input and leave the terminal
    #[arg(long, hide = true)]
    handover: bool,
}

/// What `up` gives to the daemon that it starts.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Handover {
    pub(super) options: Options,
    pub(super) setup_key: Option<SecretKey>,
}

pub(super) async fn run(global: Global, args: Args) -> Result<(), Failure> {
    let context = Context::load(global)?;
    context.start_log()?;
    if args.handover {
        platform::detach().map_err(Failure::failed)?;
        let mut line = String::new();
        io::stdin().lock().read_line(&mut line).map_err(Failure::failed)?;
        let handover: Handover = serde_json::from_str(&line).map_err(Failure::usage)?;
        let key = handover.setup_key.map(|key| key.0);
        return launch(context, handover.options, key, Purpose::Handover).await;
    }
    let options = context.given(args.options)?;
    let key = args.setup_key.or_else(|| context.file.setup_key.clone());
    let key = key.as_deref().map(setup_key::read).transpose()?;
    launch(context, options, key, Purpose::Service).await
}

/// Who started the daemon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// `up --foreground`.
    Foreground,
    /// `up`, which watches its status.
    Handover,
    /// A service manager, with the same flags at every start.
    Service,
}

pub(super) async fn launch(
    context: Context,
    given: Options,
    setup_key: Option<proto::setup_key::SetupKey>,
    purpose: Purpose,
) -> Result<(), Failure> {
    let launch = Launch {
        state_dir: context.state_dir,
        interface: context.interface,
        given,
        file: context.file.options,
        setup_key,
        keep: purpose != Purpose::Service,
        end_when_refused: purpose != Purpose::Handover,
    };
    Ok(daemon::run(launch).await?)
}
