//! The handover protocol spoken by hand, to break it in ways that the library would not.

use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::{
    RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, recv, send, sendmsg,
};

use crate::generation::Generation;
use crate::{Failure, inherited};

/// The number of the socket that a predecessor has left, if there is one.
fn socket() -> Result<i32, Failure> {
    let value = std::env::var("HANDOVER").unwrap_or_default();
    let number = value.rsplit(':').nth(1).and_then(|number| number.parse().ok());
    number.ok_or_else(|| Failure::new("there is no predecessor to talk to"))
}

pub(super) fn speak(generation: &Generation, verb: &str, rest: &str) -> Result<(), Failure> {
    let number = socket()?;
    if verb == "close" {
        return inherited::close_behind_its_owner(number);
    }
    inherited::with(number, |socket| match verb {
        "hello" => {
            let (oldest, newest) = rest.split_once(' ').unwrap_or(("1", "1"));
            let (oldest, newest): (u16, u16) = (oldest.parse()?, newest.parse()?);
            let mut frame = b"\x01HNDO".to_vec();
            frame.extend(oldest.to_le_bytes());
            frame.extend(newest.to_le_bytes());
            frame.extend(std::process::id().to_le_bytes());
            say(socket, &frame)
        }
        "offer" => {
            let count = read_offer(socket)?;
            generation.tell("offered", &[("count", &count)]);
            Ok(())
        }
        "ready" => {
            let count: u16 = rest.parse()?;
            let mut frame = vec![4];
            frame.extend(count.to_le_bytes());
            (0..count).for_each(|place| frame.extend(place.to_le_bytes()));
            frame.extend([0, 0]);
            say(socket, &frame)
        }
        "commit" => {
            let frame = hear(socket)?;
            generation.tell("heard", &[("frame", &frame.first().copied().unwrap_or(0))]);
            Ok(())
        }
        // Until there is nobody at the other end.
        "death" => {
            while !hear(socket)?.is_empty() {}
            Ok(())
        }
        "serving" => say(socket, &[6]),
        "stopping" => say(socket, &[7]),
        "release" => say(socket, &[8]),
        "say" => {
            let bytes: Result<Vec<u8>, _> =
                rest.split(' ').map(|byte| u8::from_str_radix(byte, 16)).collect();
            say(socket, &bytes?)
        }
        "garbage" => say(socket, b"GET / HTTP/1.1\r\n\r\n"),
        "half" => say(socket, b"\x01HND"),
        "oversized" => say(socket, &vec![4; 100_000]),
        "attach" => {
            let null = std::fs::File::open("/dev/null")?;
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            let descriptors = [null.as_fd()];
            control.push(SendAncillaryMessage::ScmRights(&descriptors));
            sendmsg(socket, &[IoSlice::new(&[6])], &mut control, SendFlags::NOSIGNAL)?;
            Ok(())
        }
        _ => Err(Failure::new(format!("`{verb}` is no action"))),
    })
}

fn say(socket: BorrowedFd<'_>, frame: &[u8]) -> Result<(), Failure> {
    Ok(send(socket, frame, SendFlags::NOSIGNAL).map(drop)?)
}

/// The next frame, without its descriptors, which the kernel then closes. Empty at the end.
fn hear(socket: BorrowedFd<'_>) -> Result<Vec<u8>, Failure> {
    poll(&mut [PollFd::new(&socket, PollFlags::IN)], None)?;
    let mut frame = vec![0; 128 * 1024];
    let (length, _) = recv(socket, frame.as_mut_slice(), RecvFlags::empty())?;
    frame.truncate(length);
    Ok(frame)
}

fn read_offer(socket: BorrowedFd<'_>) -> Result<u16, Failure> {
    let frame = hear(socket)?;
    let total = match *frame.as_slice() {
        [2, _, _, _, _, _, _, low, high, ..] => u16::from_le_bytes([low, high]),
        _ => return Err(Failure::new(format!("{frame:?} is no offer"))),
    };
    let mut have = 0;
    while have < total {
        match *hear(socket)?.as_slice() {
            [3, count, ..] => have += u16::from(count),
            ref frame => return Err(Failure::new(format!("{frame:?} within an offer"))),
        }
    }
    Ok(total)
}
