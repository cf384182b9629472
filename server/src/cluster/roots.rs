//! How the root is changed. The cluster trusts a short list of roots: the current, which signs, and former ones until they are retired. Each former left, when it was
//! replaced, all that its secret is ever needed for: the statement that names the next root, the link for TLS, and the key of its receipts, encrypted under the
//! current root's secret. So its secret is gone from the database in the same transaction.
//!
//! Nodes know by number which root signed their certificate, and which root their agent said it keeps. A former root is retired when no node needs it.

use crate::cluster::{Entity, Node, Op, State, base64_text, trust::some_of};
use blake2::{Blake2s256, Digest};
use chacha20poly1305::{
    KeyInit, XChaCha20Poly1305, XNonce,
    aead::{Aead, Payload},
};
use proto::{
    map::MapVersion,
    receipt::ReceiptKey,
    root::{RootKey, RootSecret},
    root_list::{MAX_ROOTS, RootList},
    statement::{NetworkId, Statement},
    time::UnixTime,
    tls::{IdentityError, RootLink},
};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

const SEALING: &[u8] = b"holdfast former receipts v1";
const NONCE_BYTES: usize = 24;
/// A certificate, a statement: both far smaller.
const PART_LIMIT_BYTES: usize = 4096;

/// The cluster's roots, where the root was ever changed. There is one list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Roots {
    /// The current root's: counts the changes. The cluster was made with 0.
    pub number: u32,
    pub current: RootKey,
    pub since: UnixTime,
    /// Oldest first; the last one was replaced by the current.
    pub former: Vec<FormerRoot>,
}

/// A root that was replaced and is still trusted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FormerRoot {
    pub key: RootKey,
    /// `None`: since the cluster was made.
    pub since: Option<UnixTime>,
    /// Names the next root, encoded as `Signed`.
    #[serde(with = "base64_text")]
    next: Vec<u8>,
    #[serde(with = "base64_text")]
    next_certificate: Vec<u8>,
    #[serde(with = "base64_text")]
    certificate: Vec<u8>,
    /// The key of its receipts, encrypted.
    #[serde(with = "base64_text")]
    receipts: Vec<u8>,
    /// The last version that it gave receipts for: whoever has its secret makes them for any.
    pub(super) last_version: MapVersion,
}

/// Why the root is not changed.
#[derive(Debug, thiserror::Error)]
pub enum RotationError {
    #[error(
        "the root before this one is still trusted ({0}); end that first with `server root retire`, or add --anyway to have several at a time"
    )]
    NotRetired(proto::root::Fingerprint),
    #[error(
        "{MAX_ROOTS} roots are trusted, which is as many as may be; end the former ones with `server root retire`"
    )]
    TooMany,
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error("the system has no random source: {0}")]
    Random(#[from] getrandom::Error),
    #[error("the root was changed meanwhile; look with `server root show`, and try again")]
    Changed,
}

/// Why former roots are not retired.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RetirementError {
    #[error("no former root is trusted: there is nothing to retire")]
    Nothing,
    #[error(
        "{count} certificates and removals are still under a former root; servers that run issue them anew, some at a time: try again later, or add --force to have it done now"
    )]
    Signed { count: usize },
    #[error(
        "{count} nodes have not yet said that they keep the new root, and would not know the servers any more: {names}; try again when they were online, or add --force and let them in with new setup keys"
    )]
    Unconfirmed { count: usize, names: String },
}

/// What a change of the root does to the list; the secret goes into the database beside it.
///
/// # Errors
/// [`RotationError`]
pub fn rotate(
    state: &State,
    next: &RootSecret,
    now: UnixTime,
    beside_former: bool,
) -> Result<Vec<Op>, RotationError> {
    let secret = state.root.secret().ok_or(RotationError::Changed)?;
    let before = state.roots();
    let former = before.map_or(&[][..], |roots| &roots.former);
    if let (Some(former), false) = (former.last(), beside_former) {
        return Err(RotationError::NotRetired(former.key.fingerprint()));
    }
    if former.len() + 2 > MAX_ROOTS {
        return Err(RotationError::TooMany);
    }
    let network = state.network_id;
    let mut kept = Vec::with_capacity(former.len() + 1);
    for former in former {
        let receipts = open(network, secret, former).ok_or(RotationError::Changed)?;
        kept.push(FormerRoot { receipts: seal(network, next, &former.key, &receipts)?, ..former.clone() });
    }
    let link = RootLink::generate(secret, next)?;
    kept.push(FormerRoot {
        key: secret.public(),
        since: before.map(|roots| roots.since),
        next: Statement::NextRoot(next.public()).sign(network, secret),
        next_certificate: link.next,
        certificate: link.former,
        receipts: seal(network, next, &secret.public(), &ReceiptKey::new(network, secret))?,
        last_version: state.version(),
    });
    let number = state.root_number() + 1;
    let roots = Roots { number, current: next.public(), since: now, former: kept };
    Ok(vec![Op::Put(Entity::Roots(Box::new(roots)))])
}

/// Ends the trust in former roots. `cut_off`: also where agents would not know the servers any more.
///
/// # Errors
/// [`RetirementError`]
pub fn retire(state: &State, cut_off: bool) -> Result<Vec<Op>, RetirementError> {
    let roots = state.roots().filter(|roots| !roots.former.is_empty()).ok_or(RetirementError::Nothing)?;
    let count = state.under_former_roots();
    if count > 0 {
        return Err(RetirementError::Signed { count });
    }
    let unconfirmed: Vec<&str> = state.unconfirmed().map(|node| node.name.as_str()).collect();
    if !unconfirmed.is_empty() && !cut_off {
        return Err(RetirementError::Unconfirmed { count: unconfirmed.len(), names: some_of(&unconfirmed) });
    }
    Ok(vec![Op::Put(Entity::Roots(Box::new(Roots { former: Vec::new(), ..Roots::clone(roots) })))])
}

/// The node with what its agent said of the root that it keeps.
pub(crate) fn confirm(state: &State, node: &Node, root: proto::root::Fingerprint) -> Option<Node> {
    let number = state.root_number();
    let is_news = node.confirmed_root < number && root == state.root.public().fingerprint();
    is_news.then(|| Node { confirmed_root: number, ..node.clone() })
}

impl Roots {
    /// As agents are told, when the state is at this version.
    pub fn list(&self, at: MapVersion) -> RootList {
        RootList {
            after: at,
            first: self.former.first().map_or(self.current, |former| former.key),
            next: self.former.iter().map(|former| former.next.clone()).collect(),
        }
    }

    /// As servers show them, newest first.
    pub fn links(&self) -> Vec<RootLink> {
        let link = |former: &FormerRoot| RootLink {
            next: former.next_certificate.clone(),
            former: former.certificate.clone(),
        };
        self.former.iter().rev().map(link).collect()
    }

    /// Whether the list is one, and leads to the root that the database holds.
    ///
    /// # Errors
    /// What is wrong.
    pub(crate) fn check(&self, network: NetworkId, root: RootKey) -> Result<(), String> {
        let is_long = |former: &FormerRoot| {
            let parts = [&former.next, &former.next_certificate, &former.certificate, &former.receipts];
            parts.iter().any(|part| part.len() > PART_LIMIT_BYTES)
        };
        if self.former.len() >= MAX_ROOTS || self.former.iter().any(is_long) {
            return Err("more of former roots than is kept".to_owned());
        }
        let chain = self
            .list(MapVersion::default())
            .verified(network)
            .map_err(|error| format!("its roots: {error}"))?;
        let named = self.former.iter().map(|former| former.key).chain([self.current]);
        match self.current == root && named.eq(chain) && self.former.len() <= self.number as usize {
            true => Ok(()),
            false => Err("roots of which one is not the next of the other".to_owned()),
        }
    }
}

fn cipher(root: &RootSecret) -> XChaCha20Poly1305 {
    let key: Zeroizing<[u8; 32]> =
        Zeroizing::new(Blake2s256::new().chain_update(SEALING).chain_update(root.expose()).finalize().into());
    XChaCha20Poly1305::new((&*key).into())
}

fn associated(network: NetworkId, former: &RootKey) -> Vec<u8> {
    [&network.0[..], &former.to_bytes()].concat()
}

/// Nonce and ciphertext.
fn seal(
    network: NetworkId,
    root: &RootSecret,
    former: &RootKey,
    receipts: &ReceiptKey,
) -> Result<Vec<u8>, getrandom::Error> {
    let mut nonce = [0; NONCE_BYTES];
    getrandom::fill(&mut nonce)?;
    let payload = Payload { msg: receipts.expose(), aad: &associated(network, former) };
    let sealed = cipher(root)
        .encrypt(XNonce::from_slice(&nonce), payload)
        .expect("a key is not too long to be encrypted");
    Ok([&nonce[..], &sealed].concat())
}

/// The key of a former root's receipts.
pub(super) fn open(network: NetworkId, root: &RootSecret, former: &FormerRoot) -> Option<ReceiptKey> {
    let (nonce, msg) = former.receipts.split_at_checked(NONCE_BYTES)?;
    let payload = Payload { msg, aad: &associated(network, &former.key) };
    let key = Zeroizing::new(cipher(root).decrypt(XNonce::from_slice(nonce), payload).ok()?);
    Some(ReceiptKey::from_bytes(network, key.as_slice().try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::{SetupKeyTerms, State, remove, sign_anew, testing};
    use proto::statement::StatementError;

    fn sign_all_anew(state: &mut State) {
        while state.under_former_roots() > 0 {
            let ops = sign_anew(state, 1);
            assert_eq!(ops.len(), 1);
            testing::apply(state, ops);
        }
    }

    fn confirm_all(state: &mut State) {
        let root = state.root.public().fingerprint();
        let confirmed = state.nodes().filter_map(|node| confirm(state, node, root));
        let ops = confirmed.map(Op::put_node).collect();
        testing::apply(state, ops);
    }

    #[test]
    fn what_former_roots_signed_is_believed_until_they_are_retired() {
        let (before, node) = testing::with_node("a");
        let mut state = testing::rotated(&testing::rotated(&before, 1), 2);
        assert_eq!(state.verify(&node.membership).unwrap().1, 0);
        let newer = testing::enrol(&mut state, "b");
        assert_eq!((newer.root, newer.confirmed_root), (2, 2));
        assert_eq!(state.verify(&newer.membership).unwrap().1, 2);
        assert_eq!(retire(&state, false), Err(RetirementError::Signed { count: 1 }));
        sign_all_anew(&mut state);
        confirm_all(&mut state);
        let ops = retire(&state, false).unwrap();
        testing::apply(&mut state, ops);
        assert_eq!(state.verify(&node.membership), Err(StatementError::Signature));
        let again = state.node(node.id).unwrap();
        assert_eq!(
            (again.issued_at, again.not_after),
            (node.issued_at, node.not_after),
            "signed anew, not renewed"
        );
        assert!(state.verify(&again.membership).is_ok());
        assert_eq!(retire(&state, true), Err(RetirementError::Nothing));
    }

    #[test]
    fn who_did_not_say_that_it_keeps_the_new_root_holds_up_retirement_by_name() {
        let (before, node) = testing::with_node("laptop");
        let mut state = testing::rotated(&before, 1);
        sign_all_anew(&mut state);
        let error = retire(&state, false).unwrap_err();
        assert!(
            matches!(&error, RetirementError::Unconfirmed { count: 1, names } if names == "laptop"),
            "{error}"
        );
        assert!(retire(&state, true).is_ok());
        let older = before.root.public().fingerprint();
        assert_eq!(confirm(&state, state.node(node.id).unwrap(), older), None);
        confirm_all(&mut state);
        assert!(retire(&state, false).is_ok());
    }

    #[test]
    fn a_root_is_changed_once_until_the_former_is_retired_unless_asked() {
        let state = testing::rotated(&testing::state(), 1);
        let next = RootSecret::from_seed(&[2; 32]);
        assert!(matches!(rotate(&state, &next, testing::NOW, false), Err(RotationError::NotRetired(_))));
        let many = (2..MAX_ROOTS as u8).fold(state, |state, seed| testing::rotated(&state, seed));
        assert!(matches!(rotate(&many, &next, testing::NOW, true), Err(RotationError::TooMany)));
        let roots = many.roots().unwrap();
        assert_eq!(roots.check(many.network_id, many.root.public()), Ok(()));
        assert!(roots.check(many.network_id, next.public()).is_err());
        let mut forged = Roots::clone(roots);
        forged.former.remove(3);
        assert!(forged.check(many.network_id, many.root.public()).is_err());
    }

    #[test]
    fn receipts_of_every_trusted_root_are_known_again_and_no_secret_is_kept() {
        let first = testing::state();
        let second = testing::rotated(&first, 1);
        let third = testing::rotated(&second, 2);
        for before in [&first, &second, &third] {
            assert!(third.is_proved(before.version(), &before.receipt()));
        }
        let text = serde_json::to_string(&**third.roots().unwrap()).unwrap();
        let secret = first.root.secret().unwrap();
        let receipts = ReceiptKey::new(first.network_id, secret);
        for bytes in [secret.expose(), receipts.expose()] {
            let base64 = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, bytes);
            assert!(!text.contains(&base64[..40]), "{text}");
        }
    }

    #[test]
    fn a_former_root_proves_no_version_of_after_it_was_replaced() {
        let first = testing::state();
        let second = testing::rotated(&first, 1);
        let thief = ReceiptKey::new(first.network_id, first.root.secret().unwrap());
        assert!(second.is_proved(first.version(), &first.receipt()));
        for version in [second.version(), MapVersion { epoch: u64::MAX, revision: u64::MAX }] {
            assert!(!second.is_proved(version, &thief.issue(version, [1; 8])), "{version:?}");
        }
        assert!(second.is_proved(second.version(), &second.receipt()));
    }

    #[test]
    fn setup_keys_of_former_roots_that_still_let_nodes_in_are_told() {
        let mut state = testing::state();
        let terms = SetupKeyTerms { reusable: true, ..SetupKeyTerms::default() };
        testing::setup_key(&mut state, &terms);
        testing::setup_key(&mut state, &terms);
        let revoked = state.setup_keys().next().unwrap().revoke(testing::NOW);
        testing::apply(&mut state, revoked);
        let mut state = testing::rotated(&state, 1);
        testing::setup_key(&mut state, &terms);
        let told: Vec<_> = state.setup_keys_of_former_roots(testing::NOW).map(|key| key.id.0).collect();
        assert_eq!(told, [2], "neither the revoked nor the new one");
    }

    #[test]
    fn removals_are_signed_anew_as_well() {
        let (mut state, node) = testing::with_node("gone");
        let ops = remove(&state, &node, testing::NOW);
        testing::apply(&mut state, ops);
        let mut state = testing::rotated(&state, 1);
        let before = state.removal(&node.key).unwrap().clone();
        sign_all_anew(&mut state);
        let after = state.removal(&node.key).unwrap();
        assert_eq!((after.removed_at, after.until), (before.removed_at, before.until));
        assert_eq!(state.verify(&after.signed).unwrap().1, 1);
    }
}
