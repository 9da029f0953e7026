use std::io;
use std::time::Duration;

/// Until some connection has ended: long enough not to turn in circles, short enough not to be
/// noticed beside the shortage itself.
const PAUSE: Duration = Duration::from_millis(100);

/// How long a loop around `accept` should wait after this error; `None` for the next accept at
/// once.
///
/// An error that concerns one connection (it was reset before it was accepted) is over with it.
/// A lack of descriptors or memory is not: what waits in the queue makes the listener readable, and
/// a loop that does not wait would turn in circles until some connection has ended.
pub fn pause_after(error: &io::Error) -> Option<Duration> {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    match error.kind() {
        ConnectionAborted | ConnectionRefused | ConnectionReset => None,
        _ => Some(PAUSE),
    }
}
