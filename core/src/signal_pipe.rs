use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, PoisonError};

use signal_hook::consts::FORBIDDEN;
use signal_hook::iterator::backend::SignalDelivery;
use signal_hook::iterator::exfiltrator::SignalOnly;

use crate::runtime::Signal;

/// The highest number of a signal on Linux.
const LAST: i32 = 64;

/// Caught signals, for a runtime that has no streams of them: its descriptor becomes readable when
/// one has arrived.
///
/// Each kind of signal is remembered in a flag of its own, so that a flood of one cannot push
/// another out. Handlers that the program installed before, or installs through `signal-hook`,
/// tokio or async-signal at any time, go on running. Dropping this uncatches nothing: the signals
/// then do nothing here.
pub struct SignalPipe {
    read: Arc<UnixStream>,
    delivery: Mutex<SignalDelivery<Arc<UnixStream>, SignalOnly>>,
}

impl SignalPipe {
    /// Catches `signals` from now on.
    ///
    /// # Errors
    /// A signal that cannot be caught, and those of the system calls.
    pub fn new(signals: &[Signal]) -> io::Result<Self> {
        let numbers = signals.iter().map(|signal| signal.as_raw());
        if let Some(number) = numbers
            .clone()
            .find(|number| FORBIDDEN.contains(number) || !(1..=LAST).contains(number))
        {
            let message = format!("{} cannot be caught", Signal::from_raw(number));
            return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
        }
        let (read, write) = UnixStream::pair()?;
        // Its own reads do not wait whatever its flags are, but a poller may want them so.
        read.set_nonblocking(true)?;
        let read = Arc::new(read);
        let delivery = SignalDelivery::with_pipe(Arc::clone(&read), write, SignalOnly, numbers)?;
        Ok(Self { read, delivery: Mutex::new(delivery) })
    }

    /// A signal that has arrived. After `None`, and not before, the descriptor becomes readable
    /// again when the next arrives.
    pub fn take(&self) -> Option<Signal> {
        let mut delivery = self.delivery.lock().unwrap_or_else(PoisonError::into_inner);
        delivery.pending().next().map(Signal::from_raw)
    }
}

impl AsFd for SignalPipe {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.read.as_fd()
    }
}

impl fmt::Debug for SignalPipe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SignalPipe").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::signal::{Signal as Nix, raise};

    #[test]
    fn a_flood_of_one_does_not_push_another_out() {
        let signals = SignalPipe::new(&[Signal::WINCH, Signal::USR2]).unwrap();
        let others = SignalPipe::new(&[Signal::WINCH]).unwrap();
        assert_eq!(signals.take(), None);
        for _ in 0..2000 {
            raise(Nix::SIGWINCH).unwrap();
        }
        raise(Nix::SIGUSR2).unwrap();
        let mut taken: Vec<_> = std::iter::from_fn(|| signals.take()).collect();
        taken.sort();
        assert_eq!(taken, [Signal::USR2, Signal::WINCH]);
        assert_eq!(others.take(), Some(Signal::WINCH));
    }

    #[test]
    fn what_cannot_be_caught_is_an_error() {
        for number in [9, 19, 11, 0, -1, 65, 1000] {
            let error = SignalPipe::new(&[Signal::from_raw(number)]).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{number}");
        }
    }
}
