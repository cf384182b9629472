//! Whom this agent believes: the network, and the roots that may sign for it. There is mostly one root. Where the cluster changed it, the former ones are believed, too, until
//! servers no longer name them. Servers must show the newest: an agent is led from a root to the next by the former's signature, and never back.

use proto::{
    root::{Fingerprint, RootKey},
    root_list::RootList,
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
    /// Believed no more; oldest first.
    retired: Vec<Fingerprint>,
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
    /// What former roots signed may not be believed any more.
    pub retired: bool,
}

impl Trust {
    pub fn new(network: NetworkId, newest: RootKey) -> Self {
        Self { network, newest, former: Vec::new(), retired: Vec::new() }
    }

    /// As it was kept.
    pub fn restored(
        network: NetworkId,
        newest: RootKey,
        former: Vec<RootKey>,
        retired: Vec<Fingerprint>,
    ) -> Self {
        Self { network, newest, former, retired }
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
            Some(last) if last == newest => Ok(Self { former, ..Self::new(network, newest) }),
            Some(_) | None => Err(StatementError::Signature),
        }
    }

    pub fn newest(&self) -> &RootKey {
        &self.newest
    }

    pub fn former(&self) -> &[RootKey] {
        &self.former
    }

    pub fn retired(&self) -> &[Fingerprint] {
        &self.retired
    }

    pub fn pins(&self) -> Pins {
        let former = self.former.iter().map(RootKey::fingerprint);
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
        let roots = [&self.newest].into_iter().chain(self.former.iter().rev());
        for (root, back) in roots.zip(0..) {
            match Statement::verify(signed, self.network, root) {
                Err(StatementError::Signature) => {}
                verified => return Ok((verified?, back)),
            }
        }
        Err(StatementError::Signature)
    }

    /// Takes over what a server tells: roots that follow upon the newest known here are believed from now on, and former ones that it leaves out are not, unless `own`, this
    /// agent's certificate, still stands under one. `None`: nothing is new.
    ///
    /// # Errors
    /// The list is no chain.
    pub fn learn(&mut self, list: &RootList, own: &[u8]) -> Result<Option<Learned>, StatementError> {
        let mut told = list.verified(self.network)?;
        // A list that does not know the newest has nothing to say to who does.
        let Some(at) = told.iter().position(|root| *root == self.newest) else { return Ok(None) };
        let newer = told.split_off(at + 1);
        let is_needed = |root: &RootKey| Statement::verify(own, self.network, root).is_ok();
        let (kept, retired): (Vec<RootKey>, Vec<RootKey>) =
            self.former.iter().partition(|root| told.contains(root) || is_needed(root));
        let learned = Learned { newer: !newer.is_empty(), retired: !retired.is_empty() };
        self.former = kept;
        for root in newer {
            self.former.push(std::mem::replace(&mut self.newest, root));
        }
        self.retired.extend(retired.iter().map(RootKey::fingerprint));
        self.retired.drain(..self.retired.len().saturating_sub(RETIRED_KEPT));
        Ok((learned.newer || learned.retired).then_some(learned))
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

    fn list(seeds: &[u8]) -> RootList {
        let next = |pair: &[u8]| Statement::NextRoot(root(pair[1]).public()).sign(NETWORK, &root(pair[0]));
        RootList { first: root(seeds[0]).public(), next: seeds.windows(2).map(next).collect() }
    }

    fn signed(seed: u8) -> Vec<u8> {
        Statement::Unknown.sign(NETWORK, &root(seed))
    }

    fn believes(trust: &Trust) -> Vec<u8> {
        (1..9).filter(|seed| trust.verify(&signed(*seed)).is_ok()).collect()
    }

    #[test]
    fn who_was_away_for_two_changes_learns_both_and_believes_what_each_signed() {
        let mut trust = Trust::new(NETWORK, root(1).public());
        let learned = trust.learn(&list(&[1, 2, 3]), &[]);
        assert_eq!(learned, Ok(Some(Learned { newer: true, retired: false })));
        assert_eq!((believes(&trust), trust.pins().newest), (vec![1, 2, 3], root(3).public().fingerprint()));
        assert_eq!(trust.verify(&signed(1)), Ok((Statement::Unknown, 2)));
        assert_eq!(trust.learn(&list(&[1, 2, 3]), &[]), Ok(None));
    }

    #[test]
    fn nobody_is_led_back_to_a_former_root_nor_to_a_retired_one() {
        let mut trust = Trust::new(NETWORK, root(1).public());
        trust.learn(&list(&[1, 2, 3]), &[]).unwrap();
        assert_eq!(trust.learn(&list(&[1, 2]), &[]), Ok(None), "a server that is behind");
        assert_eq!(trust.learn(&list(&[3]), &[]), Ok(Some(Learned { newer: false, retired: true })));
        assert_eq!(trust.learn(&list(&[1, 2, 3]), &[]), Ok(None));
        assert_eq!(believes(&trust), [3]);
        assert_eq!(trust.pins().former, [1, 2].map(|seed| root(seed).public().fingerprint()));
    }

    #[test]
    fn a_root_that_the_known_one_did_not_name_is_not_believed() {
        let mut trust = Trust::new(NETWORK, root(1).public());
        let mut forged = list(&[1, 2]);
        forged.next.push(Statement::NextRoot(root(4).public()).sign(NETWORK, &root(3)));
        assert_eq!(trust.learn(&forged, &[]), Err(StatementError::Signature));
        assert_eq!(trust.learn(&list(&[5, 6]), &[]), Ok(None));
        assert_eq!(believes(&trust), [1]);
    }

    #[test]
    fn the_root_of_the_own_certificate_is_kept_until_there_is_another() {
        let mut trust = Trust::new(NETWORK, root(1).public());
        trust.learn(&list(&[1, 2]), &[]).unwrap();
        assert_eq!(trust.learn(&list(&[2]), &signed(1)), Ok(None));
        assert_eq!(believes(&trust), [1, 2]);
        assert!(trust.learn(&list(&[2]), &signed(2)).unwrap().is_some());
        assert_eq!(believes(&trust), [2]);
    }

    #[test]
    fn who_enrols_while_two_roots_are_trusted_believes_both() {
        let of = |seeds: &[u8], newest| Trust::enrolled(NETWORK, root(newest).public(), Some(&list(seeds)));
        assert_eq!(of(&[1, 2], 2).map(|trust| believes(&trust)), Ok(vec![1, 2]));
        assert!(of(&[1, 2], 1).is_err() && of(&[1, 2], 3).is_err());
    }
}
