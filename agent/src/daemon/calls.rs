//! What callers of the local socket ask for.

use super::driver::{Driver, End, Farewell};
use crate::{
    config::{Options, Settings},
    local::{Answer, Call, Refusal, Request, SecretKey},
};
use agent_core::{BootTime, trust::Pins};
use proto::{key::PublicKey, setup_key::SetupKey};
use std::sync::Arc;
use tokio::sync::oneshot;

impl Driver<'_> {
    pub(super) async fn answer(&mut self, call: Call, now: BootTime) {
        let Call { request, answer } = call;
        let answered = match request {
            _ if self.is_ending() => Answer::Refused(Refusal::ending()),
            Request::Status | Request::Metrics { .. } => Answer::Status(Arc::new(self.snapshot())),
            Request::Watch { .. } => {
                let first = self.snapshot();
                Answer::Watch(self.world.watchers.add(first))
            }
            Request::Up { .. } | Request::Set { .. } if self.agent.is_draining() => {
                Answer::Refused(Refusal::ending())
            }
            Request::Up { options, setup_key } => outcome(self.up(options, setup_key, now).await),
            Request::Set { options } => outcome(self.set(options, now).await),
            Request::Down => return self.leave(End::Stop, Farewell::Drain, "the agent is stopped", answer),
            Request::Drain => {
                return self.leave(
                    End::Stop,
                    Farewell::Drain,
                    "peers and servers were told; the agent is stopped",
                    answer,
                );
            }
            Request::Logout => match self.agent.is_enrolled() {
                true => return self.logout(answer),
                false => Answer::Refused(Refusal::not_enrolled()),
            },
            Request::Capture { peer, snaplen } => self.capture(peer.as_deref(), snaplen),
            Request::Ping { host, .. } => match self.agent.find_peer(&host) {
                Some(peer) => return self.ping(&peer, answer, now),
                None => Answer::Refused(Refusal::failed(format!("no peer is known as {host}"))),
            },
        };
        // A caller who did not wait is not told.
        let _ = answer.send(answered);
    }

    /// Returns what the person should know, if there is anything.
    async fn up(
        &mut self,
        options: Options,
        key: Option<SecretKey>,
        now: BootTime,
    ) -> Result<String, Refusal> {
        self.set(options, now).await?;
        let unused = key.and_then(|SecretKey(key)| self.take_setup_key(key, now));
        match self.agent.is_enrolled() || self.world.setup_key.is_some() {
            true => Ok(unused.unwrap_or_default()),
            false => Err(Refusal::not_enrolled()),
        }
    }

    /// A member needs none. Returns what to say of one that may be for another network.
    fn take_setup_key(&mut self, key: SetupKey, now: BootTime) -> Option<String> {
        if self.agent.is_enrolled() {
            let pins = self.agent.pins().filter(|pins| !pins.knows(key.fingerprint));
            return pins.map(|pins| super::unused_key(pins.newest));
        }
        self.trust(Pins::only(key.fingerprint));
        self.world.setup_key = Some(key);
        self.agent.set_can_enrol(now);
        None
    }

    /// Takes settings over earlier ones, and keeps them for later starts.
    async fn set(&mut self, options: Options, now: BootTime) -> Result<String, Refusal> {
        if options.is_empty() {
            return Ok("nothing to set".into());
        }
        let given = options.clone().or(&self.world.given);
        let kept = options.clone().or(&self.world.kept);
        let settings =
            super::settings(&given, &self.world.file, &kept).map_err(|e| Refusal::usage(e.to_string()))?;
        if options.metrics_listen.is_some() {
            let moved = self.world.metrics.move_to(settings.metrics_listen, now).await;
            moved.map_err(Refusal::failed)?;
        }
        self.world.given = given;
        self.world.kept = kept;
        self.world.disk.save_settings(self.world.kept.clone());
        let mut message = "the settings are in use".to_owned();
        for rule in options.peer_mode.iter().filter_map(|rule| rule.peer.as_ref()) {
            if self.agent.find_peer(rule).is_none() {
                message = format!("kept; no peer is known as {rule} yet");
            }
        }
        settings.warnings.iter().for_each(|warning| message = format!("{message}; {warning}"));
        self.take(settings, now);
        Ok(message)
    }

    fn take(&mut self, new: Settings, now: BootTime) {
        let old = std::mem::replace(&mut self.settings, new);
        self.world.checking.take(&self.settings, now);
        self.world.hooking.take(&self.settings);
        self.apply_failed_checks(now);
        let new = &self.settings;
        if (new.listen_port, new.workers) != (old.listen_port, old.workers) {
            return self.end(End::RestartAll, Farewell::None);
        }
        if new.hostname != old.hostname {
            return self.end(End::Restart, Farewell::None);
        }
        if new.servers != old.servers {
            self.agent.set_servers(new.servers.clone(), now);
        }
        if (new.keepalive, new.peer_timeout) != (old.keepalive, old.peer_timeout) {
            self.agent.set_timing(new.keepalive, new.peer_timeout, now);
        }
        let new = &self.settings;
        if new.sharing != old.sharing {
            self.agent.set_claims_config(new.sharing.clone(), now);
        }
        if (&new.claims, new.masquerade) != (&old.claims, old.masquerade) {
            self.agent.set_claims(new.claims.clone(), now);
        }
        self.apply_checks(now);
        self.apply_modes();
    }

    fn leave(&mut self, end: End, farewell: Farewell, message: &str, answer: oneshot::Sender<Answer>) {
        tracing::info!("ending, as a caller asks");
        self.world.farewells.push((answer, message.to_owned()));
        self.end(end, farewell);
    }

    fn logout(&mut self, answer: oneshot::Sender<Answer>) {
        tracing::info!("leaving the network");
        self.leaving = Some(answer);
        self.end(End::Restart, Farewell::Logout);
        self.forget_state();
    }

    /// Answers who asked for the logout: `confirmed` by a server, or nothing came of the wait for that.
    pub(super) fn on_left(&mut self, confirmed: bool) {
        let Some(answer) = self.leaving.take() else { return };
        tracing::info!(confirmed, "left the network");
        let message = match confirmed {
            true => "this node left the network",
            false => {
                "this node left the network, but no server confirmed it: see that it is gone there, with `server node remove`"
            }
        };
        // A caller who did not wait is not told.
        let _ = answer.send(Answer::Done { message: message.into() });
    }

    /// Answered with the pong; a caller who waits no longer has closed its end.
    fn ping(&mut self, peer: &PublicKey, answer: oneshot::Sender<Answer>, now: BootTime) {
        self.pings.retain(|_, (_, waiting)| !waiting.is_closed());
        self.last_ping += 1;
        self.pings.insert(self.last_ping, (self.name_of(peer), answer));
        self.agent.ping(peer, self.last_ping, now);
    }
}

fn outcome(result: Result<String, Refusal>) -> Answer {
    match result {
        Ok(message) => Answer::Done { message },
        Err(refusal) => Answer::Refused(refusal),
    }
}
