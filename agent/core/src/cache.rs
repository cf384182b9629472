//! The map on disk: bytes with a checksum, so that a torn, truncated or foreign file is known as that and the previous one serves.
//!
//! Layout: magic `HFMAP`, format version (1 byte), BLAKE2s-256 of the rest, then an encoded `MapDelta` that holds every object, and the kept removals in a field that a
//! reader of the map alone skips.

use proto::{
    map::{Delta, Map, MapVersion, Object},
    receipt::Receipt,
    wire,
};
use serde::Serialize;

const MAGIC: &[u8; 5] = b"HFMAP";
const FORMAT: u8 = 1;
const HEADER: usize = MAGIC.len() + 1 + CHECKSUM;
const CHECKSUM: usize = 32;

/// Where the map in use came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// A server confirmed it, and still serves us.
    Live,
    /// Kept from earlier.
    Cache,
    /// There is none.
    None,
}

/// What a cache holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cached {
    pub version: MapVersion,
    /// For the version.
    pub receipt: Receipt,
    pub objects: Vec<Object>,
    /// Encoded `Signed` removals.
    pub removals: Vec<Vec<u8>>,
}

/// Why a cache cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CacheError {
    #[error("it is no map cache")]
    Foreign,
    #[error("it was written by a newer agent (format {0}; this one knows {FORMAT})")]
    Newer(u8),
    #[error("its checksum is wrong: it was truncated or damaged")]
    Damaged,
    #[error("its content is malformed: {0}")]
    Malformed(String),
}

/// The bytes to write.
pub fn encode(version: MapVersion, receipt: Receipt, map: &Map, removals: Vec<Vec<u8>>) -> Vec<u8> {
    let put =
        map.iter().map(|(id, _, content)| Object { id: id.clone(), content: content.to_vec() }).collect();
    let delta = Delta { version, digest: map.digest(), put, drop: Vec::new(), last: true, receipt };
    // Two messages one after the other are one message with the fields of both.
    let mut body = proto::encode(&wire::MapDelta::from(delta));
    body.extend(proto::encode(&wire::KeptRemovals { removals }));
    [MAGIC.as_slice(), &[FORMAT], &proto::checksum(&body), &body].concat()
}

/// Reads what [`encode`] wrote.
///
/// # Errors
/// [`CacheError`]
pub fn decode(bytes: &[u8]) -> Result<Cached, CacheError> {
    if bytes.len() < HEADER || !bytes.starts_with(MAGIC) {
        return Err(CacheError::Foreign);
    }
    match bytes[MAGIC.len()] {
        FORMAT => {}
        newer if newer > FORMAT => return Err(CacheError::Newer(newer)),
        _ => return Err(CacheError::Foreign),
    }
    let (header, body) = bytes.split_at(HEADER);
    if header[HEADER - CHECKSUM..] != proto::checksum(body) {
        return Err(CacheError::Damaged);
    }
    let wire: wire::MapDelta =
        proto::decode(body).map_err(|error| CacheError::Malformed(error.to_string()))?;
    let delta = Delta::try_from(wire).map_err(|error| CacheError::Malformed(error.to_string()))?;
    let kept: wire::KeptRemovals =
        proto::decode(body).map_err(|error| CacheError::Malformed(error.to_string()))?;
    Ok(Cached { version: delta.version, receipt: delta.receipt, objects: delta.put, removals: kept.removals })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use proto::map::ObjectId;

    fn map() -> Map {
        let mut map = Map::default();
        for id in 0..20u8 {
            map.put(Object { id: ObjectId { kind: 77, id: vec![id] }, content: vec![id; 30] });
        }
        map
    }

    const VERSION: MapVersion = MapVersion { epoch: 2, revision: 9 };
    const RECEIPT: Receipt = Receipt([3; 24]);

    #[test]
    fn a_cache_survives_the_disk() {
        let cached = decode(&encode(VERSION, RECEIPT, &map(), vec![vec![5; 9]])).unwrap();
        assert_eq!((cached.version, cached.receipt), (VERSION, RECEIPT));
        assert_eq!(cached.removals, [vec![5; 9]]);
        let mut again = Map::default();
        cached.objects.into_iter().for_each(|object| assert!(again.put(object)));
        assert_eq!(again.digest(), map().digest());
    }

    #[test]
    fn truncated_damaged_newer_and_foreign_files_are_told_apart() {
        let good = encode(VERSION, RECEIPT, &map(), vec![vec![5; 9]]);
        assert_eq!(decode(&good[..good.len() - 1]), Err(CacheError::Damaged));
        assert_eq!(decode(&good[..10]), Err(CacheError::Foreign));
        assert_eq!(decode(b""), Err(CacheError::Foreign));
        let mut newer = good.clone();
        newer[5] = 9;
        assert_eq!(decode(&newer), Err(CacheError::Newer(9)));
    }

    proptest! {
        #[test]
        fn any_flipped_bit_is_noticed(position in 0usize..700, bit in 0u8..8) {
            let mut bytes = encode(VERSION, RECEIPT, &map(), vec![vec![5; 9]]);
            let position = position % bytes.len();
            bytes[position] ^= 1 << bit;
            prop_assert!(decode(&bytes).is_err());
        }

        #[test]
        fn foreign_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _either = decode(&bytes);
        }
    }
}
