//! Which port is bound, where the wanted one may be taken.

use std::{io, time::Duration};

use crate::StartError;

/// How many other ports are tried before giving up on having both families on one.
const PORT_ATTEMPTS: usize = 16;
/// How often, and how far apart, the old port is asked for when the sockets are renewed.
const REBIND_ATTEMPTS: usize = 10;
const REBIND_PAUSE: Duration = Duration::from_millis(2);

/// Binds a port, or others while they are taken.
pub(super) fn any_port<T>(port: u16, bind: impl Fn(u16) -> Result<T, StartError>) -> Result<T, StartError> {
    let mut result = bind(port);
    for _ in 0..PORT_ATTEMPTS {
        match &result {
            Err(StartError::Socket(error)) if error.kind() == io::ErrorKind::AddrInUse => {}
            Ok(_) | Err(_) => break,
        }
        result = bind(0);
    }
    result
}

/// Binds a port that was ours until now. It may not be free before a program that was being started in that moment has closed
/// the copies it was born with. `None` if it stays taken.
pub(super) fn same_port<T>(
    port: u16,
    bind: impl Fn(u16) -> Result<T, StartError>,
) -> Result<Option<T>, StartError> {
    for _ in 0..REBIND_ATTEMPTS {
        match bind(port) {
            Err(StartError::Socket(error)) if error.kind() == io::ErrorKind::AddrInUse => {}
            result => return result.map(Some),
        }
        std::thread::sleep(REBIND_PAUSE);
    }
    Ok(None)
}
