//! Whom this agent believes: the network, and the roots that may sign for it. There is mostly one root. Where the cluster changed it, the former ones are believed, too, until
//! servers no longer name them. Servers must show the newest: an agent is led from a root to the next by the former's signature, and never back.
//!
//! A root that servers name no more proves nothing new at once. What it proved before stands until the map has what took its place, and the own certificate, too: lists come
//! before maps, and from servers that are ahead of the one which serves us.

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
        Self { network, newest, former, retiring, retired, links: Vec::new() }
    }

    pub fn with_links(self, links: Vec<Vec<u8>>) -> Self {
        Self { links, ..self }
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
        self.keep_links(&list.next);
        // Of several that leave a root out, the first may be told last.
        for retiring in self.retiring.iter_mut().filter(|retiring| !told.contains(&retiring.root)) {
            retiring.after = retiring.after.min(list.after);
        }
        let (kept, left_out): (Vec<RootKey>, Vec<RootKey>) =
            self.former.iter().partition(|root| told.contains(root));
        let learned = Learned { newer: !newer.is_empty(), retiring: !left_out.is_empty() };
        self.former = kept;
        for root in newer {
            self.former.push(std::mem::replace(&mut self.newest, root));
        }
        self.retiring.extend(left_out.into_iter().map(|root| Retiring { root, after: list.after }));
        Ok((learned.newer || learned.retiring).then_some(learned))
    }

    /// Goes on from the newest root by what a peer tells, as far as that leads; former roots are believed on, since only servers know who still needs them. Whether it
    /// led anywhere.
    pub fn follow(&mut self, links: &[Vec<u8>]) -> bool {
        let before = self.newest;
        for signed in links {
            if let Ok(Statement::NextRoot(next)) = Statement::verify(signed, self.network, &self.newest)
                && !self.pins().knows(next.fingerprint())
                && self.former.len() + 1 < MAX_ROOTS
            {
                self.former.push(std::mem::replace(&mut self.newest, next));
                self.keep_links(std::slice::from_ref(signed));
            }
        }
        self.newest != before
    }

    fn keep_links(&mut self, told: &[Vec<u8>]) {
        // Those that are not told lead to the first that is.
        self.links.retain(|link| !told.contains(link));
        self.links.extend_from_slice(told);
        self.links.drain(..self.links.len().saturating_sub(MAX_ROOTS - 1));
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
        assert_eq!(learned, Ok(Some(Learned { newer: true, retiring: false })));
        assert_eq!((believes(&trust), trust.pins().newest), (vec![1, 2, 3], root(3).public().fingerprint()));
        assert_eq!(trust.verify(&signed(1)), Ok((Statement::Unknown, 2)));
        assert_eq!(trust.learn(&list(&[1, 2, 3])), Ok(None));
    }

    #[test]
    fn nobody_is_led_back_to_a_former_root_nor_to_a_retired_one() {
        let mut trust = Trust::new(NETWORK, root(1).public());
        trust.learn(&list(&[1, 2, 3])).unwrap();
        assert_eq!(trust.learn(&list(&[1, 2])), Ok(None), "a server that is behind");
        assert_eq!(trust.learn(&list(&[3])), Ok(Some(Learned { newer: false, retiring: true })));
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

    #[test]
    fn a_peer_leads_forward_as_far_as_its_links_go_on_from_the_newest_and_nowhere_else() {
        let mut trust = Trust::new(NETWORK, root(1).public());
        assert!(!trust.follow(&list(&[2, 3]).next), "a link is missing");
        assert!(!trust.follow(&[signed(1), vec![7]]));
        assert!(trust.follow(&list(&[1, 2, 3]).next) && !trust.follow(&list(&[1, 2, 3]).next));
        assert_eq!((believes(&trust), trust.pins().newest), (vec![1, 2, 3], root(3).public().fingerprint()));
        assert!(!trust.follow(&list(&[3, 1]).next), "not in a circle");
        assert!(trust.follow(&list(&[2, 3, 4]).next));
        let links = trust.links().to_vec();
        assert_eq!(links, list(&[1, 2, 3, 4]).next);
        let mut other = Trust::new(NETWORK, root(2).public());
        assert!(other.follow(&links));
        assert_eq!(believes(&other), [2, 3, 4]);
        trust.learn(&list(&[4])).unwrap();
        assert_eq!(trust.links(), links, "who is behind may still be led");
    }

    #[test]
    fn links_and_roots_stay_bounded() {
        let seeds: Vec<u8> = (1..=20).collect();
        let mut trust = Trust::new(NETWORK, root(1).public());
        for pair in seeds.windows(2) {
            trust.follow(&list(pair).next);
        }
        assert_eq!((trust.former().len(), trust.links().len()), (MAX_ROOTS - 1, MAX_ROOTS - 1));
    }

    #[test]
    fn who_enrols_while_two_roots_are_trusted_believes_both() {
        let of = |seeds: &[u8], newest| Trust::enrolled(NETWORK, root(newest).public(), Some(&list(seeds)));
        assert_eq!(of(&[1, 2], 2).map(|trust| believes(&trust)), Ok(vec![1, 2]));
        assert!(of(&[1, 2], 1).is_err() && of(&[1, 2], 3).is_err());
    }
}
