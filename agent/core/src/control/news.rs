//! Bad news about ourselves (unknown, removed, expired, a useless setup key): one server may be behind or wrong, so a second one is asked, and the news is believed when it says
//! the same or when nobody contradicts in time.

use super::{Control, Output};
use crate::time::BootTime;
use proto::session::{Reason, Refused, ServerId};
use std::{net::SocketAddr, time::Duration};

/// What a server said against us.
#[derive(Debug)]
pub(super) struct BadNews {
    pub(super) refused: Refused,
    /// Who, as far as it was known, and where.
    from: (Option<ServerId>, SocketAddr),
    /// `None` once it is believed.
    pub(super) believe_at: Option<BootTime>,
}

impl Control {
    pub(super) fn on_bad_news(
        &mut self,
        refused: Refused,
        from: (Option<ServerId>, SocketAddr),
        now: BootTime,
    ) {
        // Whoever serves us contradicts it, unless it can be proved: the server that serves us may be the one that is behind.
        if self.is_served() && refused.reason != Reason::Removed {
            return;
        }
        // Another address of the same server is no second opinion.
        let is_another = |news: &BadNews| match (news.from.0, from.0) {
            (Some(first), Some(second)) => first != second,
            (None, _) | (_, None) => news.from.1 != from.1,
        };
        let second = self.bad_news.as_ref().is_some_and(|news| news.believe_at.is_some() && is_another(news));
        let wait =
            if second || self.knows_one_server() { Duration::ZERO } else { self.config.bad_news_timeout };
        let is_proof = |refused: &Refused| refused.reason == Reason::Removed;
        match &mut self.bad_news {
            // What can be proved is not displaced by what cannot, and is told even after that was believed.
            Some(news) if is_proof(&news.refused) && !is_proof(&refused) => {}
            Some(news) if is_proof(&news.refused) == is_proof(&refused) => {
                news.refused = refused;
                if let Some(believe_at) = &mut news.believe_at {
                    *believe_at = (*believe_at).min(now + wait);
                }
            }
            Some(_) | None => self.bad_news = Some(BadNews { refused, from, believe_at: Some(now + wait) }),
        }
    }

    /// A peer told our removal, under the root's signature: no second opinion is needed.
    pub(crate) fn handle_proven_removal(&mut self, refused: Refused) {
        let nowhere = SocketAddr::from(([0, 0, 0, 0], 0));
        self.bad_news = Some(BadNews { refused: refused.clone(), from: (None, nowhere), believe_at: None });
        self.outputs.push_back(Output::Refused(refused));
    }

    pub(super) fn believe(&mut self, now: BootTime) {
        if let Some(news) = &mut self.bad_news
            && news.believe_at.is_some_and(|at| now >= at)
        {
            news.believe_at = None;
            self.outputs.push_back(Output::Refused(news.refused.clone()));
        }
    }
}
