use std::io;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use handover_core::Drain;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, Shutdown, recv, shutdown};

/// What has come to a connection that [`wait_readable`] waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Bytes, the client's end or an error: the next read tells, without waiting.
    Readable,
    /// The stage [`Over`](handover_core::Stage::Over), and nothing else: the connection can be
    /// closed.
    Over,
    /// Nothing, for as long as it was waited.
    Nothing,
}

/// Waits, between two requests, until the connection is readable or the drain is
/// [over](Drain::over), for `timeout` at most.
///
/// Nothing is read, so nothing is lost. If both have come the connection wins: a request that is
/// here is to be served. While this process only drains, and may still roll back, it goes on
/// waiting: a client is told to leave with an answer, not by a close. With a timeout of zero it only
/// looks, which tells whether an answer is the last: a client that has sent its next request
/// already was not told in time.
///
/// Look into buffers first: bytes that a [`BufReader`](std::io::BufReader) or a TLS session has
/// taken from the connection do not make it readable again. Once the first byte of a request has
/// come it is not idle any more: read the rest as ever, with a read timeout.
///
/// ```no_run
/// use std::io::{self, BufRead, BufReader};
/// use std::net::TcpStream;
/// use std::time::Duration;
/// use handover_std::threads::{self, Connection, Drain, Next};
/// # type Reader = BufReader<Connection<TcpStream>>;
/// # fn read(_: &mut Reader) -> io::Result<bool> { Ok(true) }
/// # fn answer(_: &Reader, _: bool) -> io::Result<()> { Ok(()) }
///
/// fn serve(connection: Connection<TcpStream>, drain: &Drain) -> io::Result<()> {
///     let mut connection = BufReader::new(connection);
///     while has_more(&connection, drain, Duration::from_secs(60))? {
///         if connection.fill_buf()?.is_empty() {
///             break;
///         }
///         let mut close = read(&mut connection)?;
///         close |= drain.is_closing() && !has_more(&connection, drain, Duration::ZERO)?;
///         answer(&connection, close)?; // says `Connection: close` if it is the last
///         if close {
///             threads::close(connection.into_inner(), Duration::from_secs(1));
///             break;
///         }
///     }
///     Ok(())
/// }
///
/// fn has_more(
///     connection: &BufReader<Connection<TcpStream>>,
///     drain: &Drain,
///     timeout: Duration,
/// ) -> io::Result<bool> {
///     Ok(!connection.buffer().is_empty()
///         || threads::wait_readable(connection.get_ref(), drain, Some(timeout))? == Next::Readable)
/// }
/// ```
///
/// # What it costs
/// One poll(2), on the connection and on a descriptor that all connections share: thousands of
/// threads can wait.
///
/// # Errors
/// Those of the system calls, for example that no descriptor is left for the first wait of all.
pub fn wait_readable(
    connection: &impl AsFd,
    drain: &Drain,
    timeout: Option<Duration>,
) -> io::Result<Next> {
    let interest = |descriptor| PollFd::from_borrowed_fd(descriptor, PollFlags::IN);
    let mut polled = [interest(connection.as_fd()), interest(drain.over_descriptor()?)];
    wait(&mut polled, timeout.and_then(|timeout| Instant::now().checked_add(timeout)))?;
    let [readable, over] = polled.map(|polled| !polled.revents().is_empty());
    Ok(match (readable, over) {
        (true, _) => Next::Readable,
        (false, true) => Next::Over,
        (false, false) => Next::Nothing,
    })
}

/// Closes a connection after its last answer, so that the client gets all of it.
///
/// A close at once would reset the connection if the client has sent more than was read, and the
/// answer could be lost on its way. So this ends only its own side, and takes what still comes until
/// the client ends the other, for `patience` at most: a second is enough for those that mean
/// well. The connection counts as in flight until then. Under TLS, send its own end first.
pub fn close(connection: impl AsFd, patience: Duration) {
    let until = Instant::now().checked_add(patience);
    // Whatever fails here, there is nothing left to do but to close.
    let _ = shutdown(&connection, Shutdown::Write);
    let mut rest = [0; 4096];
    while until.is_none_or(|until| Instant::now() < until)
        && wait(&mut [PollFd::new(&connection, PollFlags::IN)], until).is_ok()
        && recv(&connection, &mut rest, RecvFlags::DONTWAIT).is_ok_and(|(length, _)| length > 0)
    {
        // Nobody answers it any more.
    }
}

/// Returns when something is ready, or when it is time.
fn wait(polled: &mut [PollFd<'_>], until: Option<Instant>) -> io::Result<()> {
    loop {
        let left = until.map(|until| until.saturating_duration_since(Instant::now()));
        let left = left.and_then(|left| Timespec::try_from(left).ok());
        match poll(polled, left.as_ref()) {
            Err(Errno::INTR) => {}
            result => return Ok(result.map(drop)?),
        }
    }
}
