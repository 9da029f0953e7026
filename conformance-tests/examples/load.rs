//! Puts load on any server of the contract, or (`any`) on any web server, and
//! tells what its clients saw. Exits with 1 if they noticed something.
//!
//! ```text
//! load 127.0.0.1:3000 seconds=60 fresh=1500 kept=16 slow=2 upload=1 ping=1
//! load unix:/run/server.sock any seconds=10 fresh=500
//! ```
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a program for the command line")]

use std::process::ExitCode;
use std::time::Duration;

use handover_conformance::client::{Load, Report, Target};
use handover_conformance::{Doing, Failure};

fn main() -> ExitCode {
    match run() {
        Ok(report) => {
            print!("{report}");
            ExitCode::from(u8::from(report.lost() + report.races() > 0))
        }
        Err(failure) => {
            eprintln!("{failure}");
            ExitCode::from(2)
        }
    }
}

fn run() -> Result<Report, Failure> {
    let mut words = std::env::args().skip(1);
    let target = words.next().ok_or_else(|| Failure::new("where to? see the example's source"))?;
    let target: Target = target.parse()?;
    let mut load = Load::builder(target).for_at_most(Duration::from_secs(10));
    let think = Duration::ZERO..Duration::from_millis(5);
    for word in words {
        let (kind, number) = word.split_once('=').unwrap_or((word.as_str(), "0"));
        let number: u32 = number.parse()?;
        let clients = number as usize;
        load = match kind {
            "seconds" => load.for_at_most(Duration::from_secs(number.into())),
            "fresh" => load.fresh(number.into()),
            "kept" => load.kept(clients, think.clone()),
            "post" => load.kept_post(clients, think.clone(), 16),
            "late" => load.kept_late(clients, Duration::ZERO..Duration::from_millis(500)),
            "slow" => load.slow(clients, Duration::from_millis(800)),
            "upload" => load.upload(clients, 1 << 20, Duration::from_millis(500)),
            "ping" => load.ping(clients, Duration::from_secs(1)),
            "any" => load.any_answer(),
            other => return Err(Failure::new(format!("no load is called `{other}`"))),
        };
    }
    Ok(load.start().doing("starting the load")?.wait())
}
