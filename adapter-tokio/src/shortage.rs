use std::io;
use std::time::Duration;

/// How long to wait after an accept failed for a lack of descriptors or memory: until some
/// connection has ended.
pub(crate) const SHORTAGE: Duration = Duration::from_millis(100);

pub(crate) fn concerns_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}
