//! Whom this agent believes: the network, and the roots that may sign for it. There is mostly one root. Where the cluster changed it, the former ones are believed, too, until
//! servers no longer name them. Servers must show the newest: an agent is led from a root to the next by the former's signature, and never back.
//!
//! A root that servers name no more proves nothing new at once. What it proved before stands until the map has what took its place, and the own certificate, too: lists come
//! before maps, and from servers that are ahead of the one which serves us.
//!
//! What peers lead to is provisional: it proves removals, which spread without servers, and nothing else, until a server's list confirms it. Somebody may have kept the secret of a
//! root that was replaced, and lead away whoever missed that.

use proto::{
    map::MapVersion,
    root::{Fingerprint, RootKey},
    root_list::{MAX_ROOTS, RootList},
    statement::{NetworkId, Statement, StatementError},
};

/// Of roots that were retired, so many are remembered: to tell a server that still has one from a stranger.
const RETIRED_KEPT: usize = 8;

/// The network and its roots.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trust {
    pub network: NetworkId,
    newest: RootKey,
    /// Oldest first.
    former: Vec<RootKey>,
    /// Named no more; oldest first.
    retiring: Vec<Retiring>,
    /// Believed no more; oldest first.
    retired: Vec<Fingerprint>,
    /// The statements by which roots named the next, up to the newest: to lead others, whom no server reaches.
    links: Vec<Vec<u8>>,
    /// Where peers led to from the newest, each after the one that it follows upon; there may be forks.
    led: Vec<Led>,
}

/// A root that no server confirmed, and the statement that names it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Led {
    root: RootKey,
    link: Vec<u8>,
}

/// A root that proves nothing new.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retiring {
    pub root: RootKey,
    /// Maps from this version on do without it.
    pub after: MapVersion,
}

/// What servers have to show.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pins {
    pub newest: Fingerprint,
    /// Roots that it replaced: a server that has one of them went back in time.
    pub former: Vec<Fingerprint>,
}

impl Pins {
    /// As a setup key says.
    pub fn only(newest: Fingerprint) -> Self {
        Self { newest, former: Vec::new() }
    }

    /// Whether it is, or was, the cluster's root.
    pub fn knows(&self, root: Fingerprint) -> bool {
        self.newest == root || self.former.contains(&root)
    }
}

/// What a list of roots changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Learned {
    /// There is a newer root.
    pub newer: bool,
    /// Former roots prove nothing new any more.
    pub retiring: bool,
    /// Others can be led from roots from which they could not.
    pub links: bool,
    /// Peers led to roots that are none of the cluster's.
    pub strays: bool,
}

impl Trust {
    pub fn new(network: NetworkId, newest: RootKey) -> Self {
        Self::restored(network, newest, Vec::new(), Vec::new(), Vec::new())
    }

    /// As it was kept.
    pub fn restored(
        network: NetworkId,
        newest: RootKey,
        former: Vec<RootKey>,
        retiring: Vec<Retiring>,
        retired: Vec<Fingerprint>,
    ) -> Self {
        Self { network, newest, former, retiring, retired, links: Vec::new(), led: Vec::new() }
    }

    pub fn with_links(self, links: Vec<Vec<u8>>) -> Self {
        Self { links, ..self }
    }

    /// By what peers told earlier.
    pub fn with_led(mut self, links: &[Vec<u8>]) -> Self {
        self.follow(links);
        self
    }

    /// What an enrolment told, over a connection to a server of the cluster.
    ///
    /// # Errors
    /// The list does not lead to `newest`.
    pub fn enrolled(
        network: NetworkId,
        newest: RootKey,
        list: Option<&RootList>,
    ) -> Result<Self, StatementError> {
        let Some(list) = list else { return Ok(Self::new(network, newest)) };
        let mut former = list.verified(network)?;
        match former.pop() {
            Some(last) if last == newest => {
                Ok(Self { former, links: list.next.clone(), ..Self::new(network, newest) })
            }
            Some(_) | None => Err(StatementError::Signature),
        }
    }

    pub fn newest(&self) -> &RootKey {
        &self.newest
    }

    pub fn former(&self) -> &[RootKey] {
        &self.former
    }

    pub fn retiring(&self) -> &[Retiring] {
        &self.retiring
    }

    pub fn retired(&self) -> &[Fingerprint] {
        &self.retired
    }

    /// How others come to the newest root.
    pub fn links(&self) -> &[Vec<u8>] {
        &self.links
    }

    /// By what peers lead on from there.
    pub fn led(&self) -> impl Iterator<Item = &[u8]> {
        self.led.iter().map(|led| led.link.as_slice())
    }

    /// What peers are told who ask how they come to the roots of this agent's removals: as many as they take.
    pub fn told_links(&self) -> Vec<Vec<u8>> {
        let all = self.links.iter().map(Vec::as_slice).chain(self.led());
        all.take(MAX_ROOTS - 1).map(<[u8]>::to_vec).collect()
    }

    pub fn pins(&self) -> Pins {
        let retiring = self.retiring.iter().map(|retiring| &retiring.root);
        let former = self.former.iter().chain(retiring).map(RootKey::fingerprint);
        Pins {
            newest: self.newest.fingerprint(),
            former: former.chain(self.retired.iter().copied()).collect(),
        }
    }

    /// Checks an encoded `Signed` under the roots, the newest first. Tells how many changes of the root ago it was signed.
    ///
    /// # Errors
    /// As [`Statement::verify`].
    pub fn verify(&self, signed: &[u8]) -> Result<(Statement, usize), StatementError> {
        self.verify_under([&self.newest].into_iter().chain(self.former.iter().rev()), signed)
    }

    /// The same of what was verified earlier: a root that servers name no more may still bear it.
    ///
    /// # Errors
    /// As [`Statement::verify`].
    pub fn verify_held(&self, signed: &[u8]) -> Result<(Statement, usize), StatementError> {
        let retiring = self.retiring.iter().rev().map(|retiring| &retiring.root);
        let believed = [&self.newest].into_iter().chain(self.former.iter().rev());
        self.verify_under(believed.chain(retiring), signed)
    }

    /// The same of what a peer tells, who may know roots that no server told here yet. Good for removals alone.
    ///
    /// # Errors
    /// As [`Statement::verify`].
    pub fn verify_told(&self, signed: &[u8]) -> Result<Statement, StatementError> {
        let led = self.led.iter().rev().map(|led| &led.root);
        let believed = [&self.newest].into_iter().chain(self.former.iter().rev());
        self.verify_under(believed.chain(led), signed).map(|(statement, _)| statement)
    }

    fn verify_under<'r>(
        &self,
        roots: impl Iterator<Item = &'r RootKey>,
        signed: &[u8],
    ) -> Result<(Statement, usize), StatementError> {
        for (root, back) in roots.zip(0..) {
            match Statement::verify(signed, self.network, root) {
                Err(StatementError::Signature) => {}
                verified => return Ok((verified?, back)),
            }
        }
        Err(StatementError::Signature)
    }

    /// Takes over what a server tells: roots that follow upon the newest known here are believed from now on, and former ones that it leaves out prove nothing new. `None`:
    /// nothing is new.
    ///
    /// # Errors
    /// The list is no chain.
    pub fn learn(&mut self, list: &RootList) -> Result<Option<Learned>, StatementError> {
        let mut told = list.verified(self.network)?;
        // A list that does not know the newest has nothing to say to who does.
        let Some(at) = told.iter().position(|root| *root == self.newest) else { return Ok(None) };
        let newer = told.split_off(at + 1);
        let links = self.keep_links(&list.next);
        // Of several that leave a root out, the first may be told last.
        for retiring in self.retiring.iter_mut().filter(|retiring| !told.contains(&retiring.root)) {
            retiring.after = retiring.after.min(list.after);
        }
        let (kept, left_out): (Vec<RootKey>, Vec<RootKey>) =
            self.former.iter().partition(|root| told.contains(root));
        let (newer_any, retiring) = (!newer.is_empty(), !left_out.is_empty());
        self.former = kept;
        for root in newer {
            self.former.push(std::mem::replace(&mut self.newest, root));
        }
        self.retiring.extend(left_out.into_iter().map(|root| Retiring { root, after: list.after }));
        let strays = newer_any && self.drop_strays();
        let learned = Learned { newer: newer_any, retiring, links, strays };
        Ok((newer_any || retiring || links).then_some(learned))
    }

    /// Whether a list goes on from a root that is known here otherwise than servers told before: somebody has the secret of a former root, or the cluster was forked.
    pub fn is_forked_by(&self, list: &RootList) -> bool {
        let Ok(told) = list.verified(self.network) else { return false };
        let pins = self.pins();
        let knows = |root: &RootKey| pins.knows(root.fingerprint());
        !told.contains(&self.newest) && told.iter().any(knows) && !told.iter().all(knows)
    }

    /// Goes on from the newest root by what a peer tells, as far as that leads: provisionally, and for removals alone. Beyond a bound the oldest of it goes. Whether it led to a root
    /// that was not known.
    pub fn follow(&mut self, links: &[Vec<u8>]) -> bool {
        let mut led_on = false;
        for link in
            links.iter().filter(|link| !self.links.contains(link)).take(MAX_ROOTS - 1).collect::<Vec<_>>()
        {
            let Some(root) = self.next_by(link) else { continue };
            if !self.pins().knows(root.fingerprint()) && !self.led.iter().any(|led| led.root == root) {
                self.led.push(Led { root, link: link.clone() });
                self.led.drain(..self.led.len().saturating_sub(MAX_ROOTS - 1));
                led_on = true;
            }
        }
        led_on
    }

    fn next_by(&self, link: &[u8]) -> Option<RootKey> {
        let led = self.led.iter().rev().map(|led| &led.root);
        match self.verify_under(led.chain([&self.newest]), link) {
            Ok((Statement::NextRoot(next), _)) => Some(next),
            Ok((Statement::Membership(_) | Statement::Removal(_) | Statement::Unknown, _)) | Err(_) => None,
        }
    }

    /// A server told of newer roots: what peers led to either goes on from the newest, or is known now, or was never the cluster's. Whether there was any of the last.
    fn drop_strays(&mut self) -> bool {
        let before = std::mem::take(&mut self.led);
        let links: Vec<Vec<u8>> = before.iter().map(|led| led.link.clone()).collect();
        self.follow(&links);
        let pins = self.pins();
        before.iter().any(|led| !pins.knows(led.root.fingerprint()) && !self.led.contains(led))
    }

    /// Whether that changed anything.
    fn keep_links(&mut self, told: &[Vec<u8>]) -> bool {
        let before = self.links.clone();
        // Those that are not told lead to the first that is.
        self.links.retain(|link| !told.contains(link));
        self.links.extend_from_slice(told);
        self.links.drain(..self.links.len().saturating_sub(MAX_ROOTS - 1));
        self.links != before
    }

    /// Ends the trust in roots that nothing needs any more: the map is at `level`, and `own`, this agent's certificate, stands under another. Returns whether there were
    /// any.
    pub fn release(&mut self, level: MapVersion, own: &[u8]) -> bool {
        let network = self.network;
        let is_needed = |retiring: &Retiring| {
            retiring.after > level || Statement::verify(own, network, &retiring.root).is_ok()
        };
        let (needed, gone): (Vec<Retiring>, Vec<Retiring>) = self.retiring.iter().partition(|r| is_needed(r));
        self.retiring = needed;
        self.retired.extend(gone.iter().map(|retiring| retiring.root.fingerprint()));
        self.retired.drain(..self.retired.len().saturating_sub(RETIRED_KEPT));
        !gone.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::root::RootSecret;

    const NETWORK: NetworkId = NetworkId([1; 16]);

    fn root(seed: u8) -> RootSecret {
        RootSecret::from_seed(&[seed; 32])
    }

    fn at(revision: u64) -> MapVersion {
        MapVersion { epoch: 1, revision }
    }

    fn list(seeds: &[u8]) -> RootList {
        list_at(0, seeds)
    }

    fn list_at(revision: u64, seeds: &[u8]) -> RootList {
        let next = |pair: &[u8]| Statement::NextRoot(root(pair[1]).public()).sign(NETWORK, &root(pair[0]));
        let next = seeds.windows(2).map(next).collect();
        RootList { first: root(seeds[0]).public(), next, after: at(revision) }
    }

    fn signed(seed: u8) -> Vec<u8> {
        Statement::Unknown.sign(NETWORK, &root(seed))
    }

    fn believes(trust: &Trust) -> Vec<u8> {
        (1..9).filter(|seed| trust.verify(&signed(*seed)).is_ok()).collect()
    }

    fn bears(trust: &Trust) -> Vec<u8> {
        (1..9).filter(|seed| trust.verify_held(&signed(*seed)).is_ok()).collect()
    }

    #[test]
    fn who_was_away_for_two_changes_learns_both_and_believes_what_each_signed() {
        let mut trust = Trust::new(NETWORK, root(1).public());
        let learned = trust.learn(&list(&[1, 2, 3]));
        let newer = Learned { newer: true, retiring: false, links: true, strays: false };
        assert_eq!(learned, Ok(Some(newer)));
        assert_eq!((believes(&trust), trust.pins().newest), (vec![1, 2, 3], root(3).public().fingerprint()));
        assert_eq!(trust.verify(&signed(1)), Ok((Statement::Unknown, 2)));
        assert_eq!(trust.learn(&list(&[1, 2, 3])), Ok(None));
    }

    #[test]
    fn nobody_is_led_back_to_a_former_root_nor_to_a_retired_one() {
        let mut trust = Trust::new(NETWORK, root(1).public());
        trust.learn(&list(&[1, 2, 3])).unwrap();
        assert_eq!(trust.learn(&list(&[1, 2])), Ok(None), "a server that is behind");
        let retiring = Learned { newer: false, retiring: true, links: false, strays: false };
        assert_eq!(trust.learn(&list(&[3])), Ok(Some(retiring)));
        for _ in 0..2 {
            assert_eq!(trust.learn(&list(&[1, 2, 3])), Ok(None));
            assert_eq!(believes(&trust), [3]);
            assert_eq!(trust.pins().former, [1, 2].map(|seed| root(seed).public().fingerprint()));
            trust.release(at(1), &signed(3));
        }
        assert_eq!(bears(&trust), [3]);
    }

    #[test]
    fn a_root_that_the_known_one_did_not_name_is_not_believed() {
        let mut trust = Trust::new(NETWORK, root(1).public());
        let mut forged = list(&[1, 2]);
        forged.next.push(Statement::NextRoot(root(4).public()).sign(NETWORK, &root(3)));
        assert_eq!(trust.learn(&forged), Err(StatementError::Signature));
        assert_eq!(trust.learn(&list(&[5, 6])), Ok(None));
        assert_eq!(believes(&trust), [1]);
    }

    #[test]
    fn a_root_that_is_named_no_more_bears_what_it_signed_until_the_map_and_the_own_certificate_do_without() {
        let mut trust = Trust::new(NETWORK, root(1).public());
        trust.learn(&list(&[1, 2])).unwrap();
        trust.learn(&list_at(7, &[2])).unwrap();
        assert_eq!((believes(&trust), bears(&trust)), (vec![2], vec![1, 2]));
        assert!(!trust.release(at(6), &signed(2)) && !trust.release(at(7), &signed(1)));
        assert_eq!(bears(&trust), [1, 2]);
        assert!(trust.release(at(7), &signed(2)));
        assert_eq!(bears(&trust), [2]);
        assert!(!trust.release(at(8), &signed(2)));
    }

    #[test]
    fn the_earliest_list_without_a_root_says_which_maps_do_without_it() {
        let mut trust = Trust::new(NETWORK, root(1).public());
        trust.learn(&list(&[1, 2])).unwrap();
        trust.learn(&list_at(9, &[2])).unwrap();
        assert_eq!(trust.learn(&list_at(5, &[1, 2])), Ok(None), "a server that is behind");
        assert!(!trust.release(at(7), &signed(2)));
        assert_eq!(trust.learn(&list_at(7, &[2])), Ok(None));
        assert!(trust.release(at(7), &signed(2)));
    }

    fn next(by: u8, to: u8) -> Vec<u8> {
        Statement::NextRoot(root(to).public()).sign(NETWORK, &root(by))
    }

    /// Of whom a peer's removals are believed.
    fn proves(trust: &Trust) -> Vec<u8> {
        (1..9).filter(|seed| trust.verify_told(&signed(*seed)).is_ok()).collect()
    }

    #[test]
    fn a_peer_leads_forward_as_far_as_its_links_go_on_from_the_newest_and_only_for_removals() {
        let mut trust = Trust::new(NETWORK, root(1).public());
        assert!(!trust.follow(&list(&[2, 3]).next), "a link is missing");
        assert!(!trust.follow(&[signed(1), vec![7]]));
        assert!(trust.follow(&list(&[1, 2, 3]).next) && !trust.follow(&list(&[1, 2, 3]).next));
        assert_eq!((proves(&trust), believes(&trust), bears(&trust)), (vec![1, 2, 3], vec![1], vec![1]));
        assert_eq!(trust.pins(), Pins::only(root(1).public().fingerprint()), "what servers must show");
        assert!(!trust.follow(&list(&[3, 1]).next), "not in a circle");
        assert!(trust.follow(&list(&[2, 3, 4]).next));
        let links = trust.told_links();
        assert_eq!(links, list(&[1, 2, 3, 4]).next);
        let mut other = Trust::new(NETWORK, root(2).public());
        assert!(other.follow(&links));
        assert_eq!(proves(&other), [2, 3, 4]);
        let kept = Trust::new(NETWORK, root(1).public()).with_led(&links);
        assert_eq!(proves(&kept), [1, 2, 3, 4]);
    }

    #[test]
    fn a_list_confirms_what_peers_led_to_and_drops_what_went_elsewhere() {
        let mut trust = Trust::new(NETWORK, root(1).public());
        assert!(trust.follow(&[next(1, 8), next(1, 2), next(8, 7), next(2, 3)]));
        assert_eq!(proves(&trust), [1, 2, 3, 7, 8], "a fork hides nothing");
        let learned = trust.learn(&list(&[1, 2])).unwrap().unwrap();
        assert!(learned.newer && learned.strays);
        assert_eq!((proves(&trust), believes(&trust)), (vec![1, 2, 3], vec![1, 2]));
        let learned = trust.learn(&list(&[1, 2, 3])).unwrap().unwrap();
        assert!(learned.newer && !learned.strays);
        assert_eq!(trust.led().count(), 0);
        trust.learn(&list(&[3])).unwrap();
        assert_eq!(trust.told_links(), list(&[1, 2, 3]).next, "who is behind may still be led");
    }

    #[test]
    fn a_list_that_goes_another_way_is_told_from_one_that_is_behind_and_from_a_strangers() {
        let mut trust = Trust::new(NETWORK, root(1).public());
        trust.learn(&list(&[1, 2, 3])).unwrap();
        assert!(trust.is_forked_by(&list(&[1, 8])) && trust.is_forked_by(&list(&[2, 8, 7])));
        for seeds in [&[1, 2][..], &[2], &[1, 2, 3], &[3, 4], &[8, 7]] {
            assert!(!trust.is_forked_by(&list(seeds)), "{seeds:?}");
        }
    }

    #[test]
    fn links_without_another_root_are_news_once() {
        let mut trust = Trust::new(NETWORK, root(2).public());
        let links = Learned { newer: false, retiring: false, links: true, strays: false };
        assert_eq!(trust.learn(&list(&[1, 2])), Ok(Some(links)));
        assert_eq!(trust.learn(&list(&[1, 2])), Ok(None));
        assert_eq!(trust.links(), list(&[1, 2]).next);
    }

    #[test]
    fn links_and_roots_stay_bounded() {
        let seeds: Vec<u8> = (1..=20).collect();
        let mut trust = Trust::new(NETWORK, root(1).public());
        for pair in seeds.windows(2) {
            trust.follow(&list(pair).next);
            trust.follow(&[next(1, 100 + pair[0])]);
        }
        assert_eq!((trust.former().len(), trust.led().count()), (0, MAX_ROOTS - 1));
        for pair in seeds.windows(2) {
            trust.learn(&list(pair)).unwrap();
        }
        assert_eq!((trust.links().len(), trust.told_links().len()), (MAX_ROOTS - 1, MAX_ROOTS - 1));
    }

    #[test]
    fn who_enrols_while_two_roots_are_trusted_believes_both() {
        let of = |seeds: &[u8], newest| Trust::enrolled(NETWORK, root(newest).public(), Some(&list(seeds)));
        assert_eq!(of(&[1, 2], 2).map(|trust| believes(&trust)), Ok(vec![1, 2]));
        assert!(of(&[1, 2], 1).is_err() && of(&[1, 2], 3).is_err());
    }
}
