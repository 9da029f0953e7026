//! An axum server with TLS that can replace itself: `kill -HUP` restarts it, `kill -TERM` stops it.
//! Session tickets that the old process issued are good in the new one, so that clients which
//! come back do not all have to do full handshakes at once.
//!
//! It takes its address from `ADDR`, and signs its certificate itself.

use std::error::Error;
use std::process;
use std::sync::Arc;

use axum::Router;
use axum::routing::get;
use handover::core::HandedOver;
use handover::tokio::http;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::rand::{SecureRandom, SystemRandom};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::server::ProducesTickets;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error + Send + Sync>> {
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    let address = std::env::var("ADDR").unwrap_or_else(|_| "127.0.0.1:3443".into());
    let app = Router::new().route("/", get(async || format!("ok {}\n", process::id())));

    let mut start = handover::tokio::start()?;
    let keys = start.inherited::<TicketKeys>().unwrap_or_default().rotated()?;
    start.hand_over({
        let keys = keys.clone();
        move || keys.clone()
    });
    let acceptor = acceptor(keys)?;
    let listener = start.listen_tcp("web", address)?;
    start.run(http::serve(listener, app).handshake(move |tcp| acceptor.accept(tcp))).await?;
    Ok(())
}

fn acceptor(keys: TicketKeys) -> Result<TlsAcceptor, Box<dyn Error + Send + Sync>> {
    let signed = rcgen::generate_simple_self_signed(["localhost".to_owned()])?;
    let mut config = ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(vec![signed.cert.into()], signed.signing_key.into())?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    config.ticketer = Arc::new(keys);
    Ok(TlsAcceptor::from(Arc::new(config)))
}

/// The keys that session tickets are sealed with, the newest first. rustls has such a type, but
/// does not give its keys away.
///
/// Each generation adds one. A server that is restarted less often than every day or so should
/// add one from time to time as well: a key that leaks opens the sessions of its time.
#[derive(Clone, Default)]
struct TicketKeys(Vec<[u8; 32]>);

impl TicketKeys {
    const KEPT: usize = 4;

    fn rotated(mut self) -> Result<Self, ring::error::Unspecified> {
        let mut key = [0; 32];
        SystemRandom::new().fill(&mut key)?;
        self.0.insert(0, key);
        self.0.truncate(Self::KEPT);
        Ok(self)
    }

    fn cipher(key: &[u8; 32]) -> Option<LessSafeKey> {
        Some(LessSafeKey::new(UnboundKey::new(&AES_256_GCM, key).ok()?))
    }
}

// Nothing of the keys is printed: rustls wants this.
impl std::fmt::Debug for TicketKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("TicketKeys").field(&self.0.len()).finish()
    }
}

impl HandedOver for TicketKeys {
    const NAME: &'static str = "ticket-keys";
    const VERSION: u32 = 1;

    fn encode(&self) -> Vec<u8> {
        self.0.concat()
    }

    fn decode(version: u32, bytes: &[u8]) -> Option<Self> {
        let (keys, rest) = bytes.as_chunks();
        (version == Self::VERSION && rest.is_empty()).then(|| Self(keys.to_vec()))
    }
}

/// A ticket is a random nonce and the sealed session. 2^32 tickets would be too many for one key.
impl ProducesTickets for TicketKeys {
    fn enabled(&self) -> bool {
        true
    }

    fn lifetime(&self) -> u32 {
        12 * 60 * 60
    }

    fn encrypt(&self, session: &[u8]) -> Option<Vec<u8>> {
        let mut nonce = [0; NONCE_LEN];
        SystemRandom::new().fill(&mut nonce).ok()?;
        let mut sealed = session.to_vec();
        Self::cipher(self.0.first()?)?
            .seal_in_place_append_tag(
                Nonce::assume_unique_for_key(nonce),
                Aad::empty(),
                &mut sealed,
            )
            .ok()?;
        Some([&nonce[..], &sealed].concat())
    }

    fn decrypt(&self, ticket: &[u8]) -> Option<Vec<u8>> {
        let (nonce, sealed) = ticket.split_first_chunk()?;
        self.0.iter().find_map(|key| {
            let mut session = sealed.to_vec();
            let nonce = Nonce::assume_unique_for_key(*nonce);
            let length =
                Self::cipher(key)?.open_in_place(nonce, Aad::empty(), &mut session).ok()?.len();
            session.truncate(length);
            Some(session)
        })
    }
}
