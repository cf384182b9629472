//! A lab of network namespaces in which scenarios, the demo and the benchmarks run on real processes.
//!
//! Hosts, switches and routers are namespaces without names ([`topology`]); programs run inside and die with their
//! scenario ([`process`]); a gap meter counts lost pings to the millisecond ([`ping`]); a capture shows silence
//! ([`capture`]). On top of that, [`mesh`] builds servers and agents. The whole run happens in a room of its own
//! ([`sandbox`]), from which nothing escapes to the machine and in which nothing is left behind.

pub mod agent;
pub mod authority;
pub mod binaries;
pub mod capture;
pub mod client;
pub mod clock;
pub mod crowd;
pub mod delay;
pub mod exchange;
pub mod figures;
pub mod many;
pub mod mesh;
pub mod names;
pub mod namespace;
pub mod numbered;
pub mod pcapng;
pub mod ping;
pub mod postgres;
pub mod process;
pub mod proxy;
pub mod rogue;
pub mod sandbox;
pub mod scenario;
pub mod server;
pub mod status;
pub mod stillness;
pub mod topology;
pub mod wait;
pub mod watch;
pub mod wireguard;
