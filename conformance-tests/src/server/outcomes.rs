//! What the library says, as events; and the state that crosses.

use std::fmt::Display;

use handover_core::{Exit, HandedOver, RestartError, Takeover};

use crate::generation::Generation;

/// Application state of a size, of one of two versions.
pub(super) struct Blob<const VERSION: u32>(pub(super) Vec<u8>);

impl<const V: u32> HandedOver for Blob<V> {
    const NAME: &'static str = "blob";
    const VERSION: u32 = V;

    fn encode(&self) -> Vec<u8> {
        self.0.clone()
    }

    fn decode(version: u32, bytes: &[u8]) -> Option<Self> {
        (version == V && bytes.iter().all(|&byte| byte == 7)).then(|| Self(bytes.to_vec()))
    }
}

/// Tells how a restart went.
pub(super) fn tell_outcome(
    generation: &Generation,
    name: &str,
    id: Option<&str>,
    outcome: &Result<Takeover, RestartError>,
) {
    let id = id.unwrap_or_default();
    match outcome {
        Ok(takeover) => generation.tell(
            name,
            &[
                ("id", &id),
                ("ok", &true),
                ("pid", &takeover.pid),
                ("generation", &takeover.generation),
                ("claimed", &takeover.claimed.join(" ")),
                ("bound", &takeover.bound.join(" ")),
                ("dropped", &takeover.dropped.join(" ")),
                ("in_flight", &takeover.in_flight),
                ("total", &format!("{:?}", takeover.steps.total())),
                ("switch", &format!("{:?}", takeover.steps.switch)),
            ],
        ),
        Err(error) => {
            let ended = error.ended().map(ToString::to_string).unwrap_or_default();
            generation.tell(
                name,
                &[
                    ("id", &id),
                    ("ok", &false),
                    ("failure", &format!("{:?}", error.failure())),
                    ("detail", &error.detail().unwrap_or_default()),
                    ("os_error", &error.raw_os_error().unwrap_or(0)),
                    ("ended", &ended),
                    ("error", &error),
                ],
            );
        }
    }
}

/// Tells how `run` ended.
pub(super) fn tell_exit(generation: &Generation, result: &handover_core::Result<Exit>) {
    match result {
        Ok(exit) => generation.tell(
            "exit",
            &[
                ("successor", &exit.successor.unwrap_or(0)),
                ("drained", &exit.drained.as_millis()),
                ("cut", &exit.cut),
            ],
        ),
        Err(error) => {
            let kind: &dyn Display = &format!("{:?}", error.kind());
            generation.tell("exit", &[("kind", kind), ("error", error)]);
        }
    }
}
