//! `agent up`: returns when the agent is enrolled and served, or has its cached map up.

use super::{
    Context, Global,
    daemon::{self, Handover, Purpose},
    failure::Failure,
    output::{self, Progress},
    setup_key, start,
    view::View,
};
use crate::{
    config::{Options, Settings, Span},
    local::{ClientError, Code, Done, Request, SecretKey, Watch},
    platform,
    state_dir::{kept_settings, wait_released, was_enrolled},
};
use anyhow::anyhow;
use std::time::Duration;
use tokio::time::Instant;

/// With a cached map up, servers are awaited for this long before the command says so and returns.
const CACHED_PATIENCE: Duration = Duration::from_secs(3);

/// An agent that was told to end is gone after this.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(5);

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    options: Options,
    /// For the first time: a setup key, or the file that contains it
    #[arg(long, value_name = "KEY|file:PATH", env = "HOLDFAST_SETUP_KEY", hide_env = true)]
    setup_key: Option<String>,
    /// How long to wait until served
    #[arg(long, value_name = "SPAN", default_value = "30s")]
    timeout: Span,
    /// Run the agent in this process, logging to standard error
    #[arg(long)]
    foreground: bool,
}

pub(super) async fn run(global: Global, args: Args) -> Result<(), Failure> {
    let context = Context::load(global)?;
    let given = context.given(args.options)?;
    let key = args.setup_key.or_else(|| context.file.setup_key.clone());
    let key = key.as_deref().map(setup_key::read).transpose()?;
    let settings = check(&context, &given, key.is_some())?;
    if args.foreground {
        context.start_log()?;
        return daemon::launch(context, given, key, Purpose::Foreground).await;
    }
    settings.warnings.iter().for_each(|warning| output::warn(warning));
    let progress = Progress::start("starting");
    let (watch, started) = connect(&context, given, key.map(SecretKey)).await?;
    let outcome = follow(watch, args.timeout.0, &progress).await;
    drop(progress);
    match outcome {
        Ok((message, view)) => {
            output::line(&message)?;
            view.refused_claims().iter().for_each(|refused| output::warn(refused));
            Ok(())
        }
        Err(failure) => {
            if started && !failure.enrolled {
                // Nothing is left behind by a start that came to nothing.
                let _gone: Result<Done, ClientError> = context.client().call(&Request::Down).await;
            }
            Err(Failure::Failed(failure.error))
        }
    }
}

/// What can be told before anything is started.
fn check(context: &Context, given: &Options, has_key: bool) -> Result<Settings, Failure> {
    let enrolled = was_enrolled(&context.state_dir);
    let all = given.clone().or(&context.file.options).or(&kept_settings(&context.state_dir));
    let settings = Settings::resolve(all, platform::hostname())?;
    if settings.servers.is_empty() && !enrolled {
        return Err(Failure::Usage(anyhow!("no servers are known; give --servers host:port,..")));
    }
    if !enrolled && !has_key {
        return Err(Failure::NotEnrolled(anyhow!(
            "this node is not enrolled; give --setup-key (make one with `server setup-key create`)"
        )));
    }
    Ok(settings)
}

/// The status of the agent that runs, or of one started now (`true`), with these settings in use.
async fn connect(
    context: &Context,
    options: Options,
    key: Option<SecretKey>,
) -> Result<(Watch, bool), Failure> {
    let request = Request::Up { options: options.clone(), setup_key: key.clone() };
    let watch = Request::Watch { peers: false };
    match context.client().call::<Done>(&request).await {
        Ok(done) => {
            if !done.message.is_empty() {
                output::warn(&done.message);
            }
            Ok((context.client().ask(&watch).await?, false))
        }
        // One that is just ending: its successor may start when it is gone.
        Err(error) if is_gone(&error) => {
            if !wait_released(&context.state_dir, RELEASE_TIMEOUT).await {
                return Err(error.into());
            }
            let handover = Handover { options, setup_key: key };
            Ok((start::start(context, &handover, &watch).await?, true))
        }
        Err(error) => Err(error.into()),
    }
}

/// Whether no agent runs, or not for much longer.
fn is_gone(error: &ClientError) -> bool {
    match error {
        ClientError::NotRunning(_) | ClientError::Ended => true,
        ClientError::Refused(refusal) => refusal.code == Code::Ending,
        ClientError::NoPermission(_) | ClientError::Io(_) | ClientError::Answer(_) => false,
    }
}

/// Why the agent did not get up.
struct NotUp {
    enrolled: bool,
    error: anyhow::Error,
}

async fn follow(mut watch: Watch, timeout: Duration, progress: &Progress) -> Result<(String, View), NotUp> {
    let begun = Instant::now();
    let mut last: Option<View> = None;
    loop {
        let cached = last.as_ref().is_some_and(View::has_cached_map);
        let patience = if cached { timeout.min(CACHED_PATIENCE) } else { timeout };
        let enrolled = last.as_ref().is_some_and(View::is_enrolled);
        let not_up = |error| NotUp { enrolled, error };
        let line = match tokio::time::timeout_at(begun + patience, watch.next_line()).await {
            Ok(Ok(Some(line))) => line,
            Ok(Ok(None)) => return Err(not_up(anyhow!("the agent ended; its log says why"))),
            Ok(Err(error)) => return Err(not_up(error.into())),
            Err(_elapsed) => return gave_up(last, timeout),
        };
        let view: View = serde_json::from_str(&line).map_err(|error| not_up(error.into()))?;
        if let Some(url) = view.ready_by() {
            let message =
                format!("up: {} ({}), served by {url}", view.own.name, view.own.addresses.join(", "));
            return Ok((message, view));
        }
        if let Some(refused) = view.control.refused.as_ref().filter(|_| !view.is_enrolled()) {
            return Err(NotUp {
                enrolled: false,
                error: anyhow!("servers refuse to enrol this node: {refused}"),
            });
        }
        progress.say(&format!("waiting for a server ({})", view.troubles()));
        last = Some(view);
    }
}

/// The time is over.
fn gave_up(last: Option<View>, timeout: Duration) -> Result<(String, View), NotUp> {
    let Some(view) = last else {
        return Err(NotUp { enrolled: false, error: anyhow!("the agent said nothing within {timeout:?}") });
    };
    if view.has_cached_map() {
        let age = view.control.map_age_seconds.map_or_else(String::new, |age| format!(", {age} s old"));
        let message = format!(
            "up: {} ({}), not served ({}); tunnels are up from the cached map{age}",
            view.own.name,
            view.own.addresses.join(", "),
            view.troubles()
        );
        return Ok((message, view));
    }
    let error = anyhow!("not served within {}: {}", Span(timeout), view.troubles());
    Err(NotUp { enrolled: view.is_enrolled(), error })
}
