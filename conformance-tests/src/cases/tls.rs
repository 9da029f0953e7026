//! TLS: handshakes under way during the switch complete, and sessions are resumed after it.

use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;

use futures_rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use futures_rustls::rustls::client::danger::{
    HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier,
};
use futures_rustls::rustls::crypto::CryptoProvider;
use futures_rustls::rustls::crypto::ring::default_provider;
use futures_rustls::rustls::version::{TLS12, TLS13};
use futures_rustls::rustls::{
    self, ClientConfig, ClientConnection, DigitallySignedStruct, HandshakeKind, SignatureScheme,
    StreamOwned, SupportedProtocolVersion,
};

use super::common::{SOON, load, plain, restart, start, stop};
use super::http::{all_left, case};
use super::talk::Talk;
use crate::signal::Signal;
use crate::{Case, Context, Doing, Failure, Scenario, ensure};

pub(super) const CASES: &[Case] = &[
    case(
        "http::tls_handshakes_under_way_are_completed",
        "TLS: a handshake under way during the switch completes, and its requests are answered",
        handshakes,
    ),
    case(
        "http::tls_sessions_are_resumed_by_the_next_generations",
        "TLS: session tickets stay valid, with their keys as application state",
        tickets,
    ),
];

/// The first listener, for whoever tells who serves, and another with TLS.
fn with_tls() -> Scenario {
    plain().also("listen", "tls tls 127.0.0.1:0")
}

fn handshakes(case: &Context) -> Result<(), Failure> {
    let first = start(case, &with_tls().with("policy.probation", 20_000))?;
    let address = first.address_of("tls")?;
    let load = load(case, first.address()?)?;
    let (mut begun, mut waiting) = (Vec::new(), Vec::new());
    for version in [&TLS13, &TLS12] {
        begun.push(Handshake::begin(&client(version)?, address)?);
        waiting.push(Handshake::begin(&client(version)?, address)?);
    }
    for handshake in &mut begun {
        handshake.send_half()?;
    }
    for handshake in &mut waiting {
        handshake.send_half()?;
        handshake.send_rest()?;
        handshake.wait_for_server()?;
    }
    // It was accepted after all of those.
    visit(&client(&TLS13)?, address, first.pid, HandshakeKind::Full)?;

    let second = restart(case, first.pid)?.pid;
    load.wait_for_successor(first.pid, SOON)?;
    for mut handshake in begun.into_iter().chain(waiting) {
        handshake.send_rest()?;
        let mut talk = handshake.finish()?;
        let said = talk.get("/")?;
        ensure!(said.pid == first.pid, "process {} was to answer: {said:?}", first.pid);
        ensure!(said.close, "{said:?} keeps the connection to a process that leaves");
    }
    visit(&client(&TLS13)?, address, second, HandshakeKind::Full)?;
    load.wait_for_answers(50, SOON)?;
    case.nothing_lost(&load.stop())?;
    // It gives up its probation.
    case.signal(first.pid, Signal::TERM)?;
    all_left(case, &[first.pid])?;
    stop(case, second)
}

fn tickets(case: &Context) -> Result<(), Failure> {
    let first = start(case, &with_tls())?;
    let address = first.address_of("tls")?;
    let load = load(case, first.address()?)?;
    // One with a new ticket at each visit, and one that misses a generation.
    let mut clients = Vec::new();
    for version in [&TLS13, &TLS12] {
        clients.push((client(version)?, client(version)?));
    }
    for (often, seldom) in &clients {
        visit(often, address, first.pid, HandshakeKind::Full)?;
        visit(often, address, first.pid, HandshakeKind::Resumed)?;
        visit(seldom, address, first.pid, HandshakeKind::Full)?;
    }
    let second = restart(case, first.pid)?.pid;
    for (often, _) in &clients {
        visit(often, address, second, HandshakeKind::Resumed)?;
    }
    let third = restart(case, second)?.pid;
    for (often, seldom) in &clients {
        visit(often, address, third, HandshakeKind::Resumed)?;
        visit(seldom, address, third, HandshakeKind::Resumed)?;
    }
    load.wait_for_successor(second, SOON)?;
    case.nothing_lost(&load.stop())?;
    all_left(case, &[first.pid, second])?;
    stop(case, third)
}

/// One request on a connection of its own, whose handshake must be of that kind.
fn visit(
    config: &Arc<ClientConfig>,
    address: SocketAddr,
    pid: u32,
    kind: HandshakeKind,
) -> Result<(), Failure> {
    let mut handshake = Handshake::begin(config, address)?;
    handshake.send_rest()?;
    let mut talk = handshake.finish()?;
    let said = talk.get("/")?;
    ensure!(said.pid == pid, "process {pid} was to answer: {said:?}");
    let was = talk.stream().conn.handshake_kind();
    ensure!(was == Some(kind), "{was:?} where {kind:?} was due, with process {pid}");
    Ok(())
}

/// A client's handshake that can be held up.
struct Handshake {
    connection: ClientConnection,
    stream: TcpStream,
    /// What is left to send of the client's first message.
    hello: Vec<u8>,
}

impl Handshake {
    fn begin(config: &Arc<ClientConfig>, address: SocketAddr) -> Result<Self, Failure> {
        let name = ServerName::try_from("handover")?;
        let mut connection = ClientConnection::new(Arc::clone(config), name)?;
        let mut hello = Vec::new();
        connection.write_tls(&mut hello).doing("making a ClientHello")?;
        let stream = TcpStream::connect_timeout(&address, SOON).doing("connecting")?;
        stream.set_read_timeout(Some(SOON)).doing("connecting")?;
        Ok(Self { connection, stream, hello })
    }

    fn send_half(&mut self) -> Result<(), Failure> {
        let half = self.hello.drain(..self.hello.len() / 2).collect::<Vec<u8>>();
        self.stream.write_all(&half).doing("sending half a ClientHello")
    }

    fn send_rest(&mut self) -> Result<(), Failure> {
        self.stream.write_all(&std::mem::take(&mut self.hello)).doing("sending a ClientHello")
    }

    /// Waits until the server has answered the first message, and leaves that unread.
    fn wait_for_server(&self) -> Result<(), Failure> {
        let peeked = self.stream.peek(&mut [0]).doing("waiting for a ServerHello")?;
        ensure!(peeked == 1, "closed where a ServerHello was due");
        Ok(())
    }

    fn finish(mut self) -> Result<Talk<StreamOwned<ClientConnection, TcpStream>>, Failure> {
        while self.connection.is_handshaking() {
            self.connection.complete_io(&mut self.stream).doing("a handshake")?;
        }
        Ok(Talk::over(StreamOwned::new(self.connection, self.stream)))
    }
}

/// A client with sessions of its own.
fn client(version: &'static SupportedProtocolVersion) -> Result<Arc<ClientConfig>, Failure> {
    let provider = Arc::new(default_provider());
    let anybody = Arc::new(Anybody(Arc::clone(&provider)));
    let config =
        ClientConfig::builder_with_provider(provider).with_protocol_versions(&[version])?;
    Ok(Arc::new(config.dangerous().with_custom_certificate_verifier(anybody).with_no_client_auth()))
}

/// Each generation signs its own certificate: any will do.
#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
