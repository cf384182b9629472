//! The control service against real clients: TLS and gRPC over loopback, SQLite in a temporary directory. One file per theme.

mod agent;
mod floods;
mod hostile;
mod maps;
mod membership;
mod presence;
mod recovery;
mod roots;
mod server;
mod sessions;
mod signals;
mod slow;
