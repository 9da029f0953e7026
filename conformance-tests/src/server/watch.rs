//! A descriptor that the runtime watches as it does the driver's.

use std::future::poll_fn;
use std::io;
use std::sync::Arc;
use std::task::Poll;
use std::thread::Builder;

use handover_core::Runtime;
use rustix::event::{EventfdFlags, Timespec, epoll, eventfd};

use crate::Failure;

/// Makes one, waits until the runtime says that it is readable, and drops it.
pub(super) async fn once<R: Runtime>(runtime: &R) -> Result<(), Failure> {
    let event = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
    let set = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    epoll::add(&set, &*event, epoll::EventData::new_u64(0), epoll::EventFlags::IN)?;
    let mut watch = runtime.watch(set)?;
    let mut writer = None;
    poll_fn(|context| {
        let ready = R::poll_readable(&mut watch, context, |set| {
            let mut events = [const { std::mem::MaybeUninit::uninit() }; 1];
            let zero = Timespec { tv_sec: 0, tv_nsec: 0 };
            match epoll::wait(set, &mut events, Some(&zero))?.0 {
                [] => Err(io::ErrorKind::WouldBlock.into()),
                _ => Ok(()),
            }
        });
        if ready.is_pending() && writer.is_none() {
            // Only now, so that nothing but a wake-up brings the task back.
            let event = Arc::clone(&event);
            let write = move || rustix::io::write(&*event, &1u64.to_ne_bytes()).map(drop);
            match Builder::new().name("writer".into()).spawn(write) {
                Ok(started) => writer = Some(started),
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
        ready
    })
    .await?;
    match writer.map(std::thread::JoinHandle::join) {
        Some(Ok(written)) => Ok(written?),
        _ => Err(Failure::new("a descriptor that nobody has written to is said to be readable")),
    }
}
