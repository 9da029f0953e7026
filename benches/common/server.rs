//! A small HTTP server with and without handover, and the process that it runs in.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use axum::Router;
use axum::routing::get;

pub(crate) type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// What examples/axum.rs answers.
pub(crate) fn app() -> Router {
    Router::new().route("/", get(async || format!("ok {}\n", std::process::id())))
}

/// A process of this same program in another role.
pub(crate) struct Server {
    pub(crate) child: Child,
    pub(crate) output: BufReader<ChildStdout>,
}

impl Server {
    pub(crate) fn start(role: &str, address: SocketAddr) -> Result<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .args([role, &address.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()?;
        let output = child.stdout.take().ok_or("no pipe")?;
        Ok(Self { child, output: BufReader::new(output) })
    }

    /// The next line that it, or its successor, prints.
    #[allow(dead_code, reason = "not every bench listens")]
    pub(crate) fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        match self.output.read_line(&mut line)? {
            0 => Err("the server has ended".into()),
            _ => Ok(line.trim_end().to_owned()),
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// An address that nobody listens on.
pub(crate) fn free_address() -> Result<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}

/// Asks on new connections, ten thousand times a second, until somebody else than `old` answers;
/// says who and when.
pub(crate) fn first_answer(address: SocketAddr, old: u32) -> Result<(u32, Instant)> {
    let deadline = Instant::now() + Duration::from_secs(20);
    while Instant::now() < deadline {
        match ask(address) {
            Ok(pid) if pid != old => return Ok((pid, Instant::now())),
            Ok(_) => {}
            // Not there yet. Any other error would be a lost request.
            Err(error) if old == 0 && error.kind() == io::ErrorKind::ConnectionRefused => {}
            Err(error) => return Err(error.into()),
        }
        std::thread::sleep(Duration::from_micros(50));
    }
    Err("no answer in 20 seconds".into())
}

fn ask(address: SocketAddr) -> io::Result<u32> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let pid = answer.rsplit(' ').next().and_then(|pid| pid.trim_end().parse().ok());
    pid.ok_or_else(|| io::Error::other(format!("answered {answer:?}")))
}
