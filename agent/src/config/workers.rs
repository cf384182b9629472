//! The number of the data plane's workers as people write it.

use agent_tunnel::{InvalidWorkers, Workers};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::str::FromStr;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct WorkerCount(pub(crate) Workers);

impl FromStr for WorkerCount {
    type Err = InvalidWorkers;

    fn from_str(text: &str) -> Result<Self, InvalidWorkers> {
        text.parse().map(Self)
    }
}

impl Serialize for WorkerCount {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.count().serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for WorkerCount {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Written {
            Number(i64),
            Text(String),
        }
        let text = match Written::deserialize(deserializer)? {
            Written::Number(number) => number.to_string(),
            Written::Text(text) => text,
        };
        text.parse().map_err(serde::de::Error::custom)
    }
}
