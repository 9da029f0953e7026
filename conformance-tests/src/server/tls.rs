//! TLS on the suite's own listeners. Its session tickets are good in the next generations too.

use std::fmt;
use std::io::{self, Read, Write};
use std::sync::Arc;

use futures::io::{AsyncRead, AsyncWrite};
use futures_rustls::rustls::crypto::ring::default_provider;
use futures_rustls::rustls::server::ProducesTickets;
pub(super) use futures_rustls::rustls::server::ServerConfig as Config;
use futures_rustls::rustls::{ServerConnection, StreamOwned};
use futures_rustls::server::TlsStream;
use handover_core::{HandedOver, Sockets, Start};
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::rand::{SecureRandom, SystemRandom};

use crate::Failure;

/// Takes the predecessor's keys and hands its own to the successor.
pub(super) fn config<R: Sockets>(start: &mut Start<R>) -> Result<Arc<Config>, Failure> {
    let keys = start.inherited::<TicketKeys>().unwrap_or_default().with_another()?;
    let handed = keys.clone();
    start.hand_over(move || handed.clone());
    let signed = rcgen::generate_simple_self_signed(["handover".to_owned()])?;
    let mut config = Config::builder_with_provider(Arc::new(default_provider()))
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(vec![signed.cert.into()], signed.signing_key.into())?;
    config.ticketer = Arc::new(keys);
    Ok(Arc::new(config))
}

/// The handshake of a server of futures.
pub(super) async fn accept<C>(config: &Arc<Config>, connection: C) -> io::Result<TlsStream<C>>
where
    C: AsyncRead + AsyncWrite + Unpin,
{
    futures_rustls::TlsAcceptor::from(Arc::clone(config)).accept(connection).await
}

/// What a server of threads reads from and writes to. The handshake comes with the first read.
pub(super) fn over<C: Read + Write>(
    config: Arc<Config>,
    connection: C,
) -> Result<StreamOwned<ServerConnection, C>, Failure> {
    Ok(StreamOwned::new(ServerConnection::new(config)?, connection))
}

/// The keys that tickets are sealed with, the newest first: rustls does not give its own away.
#[derive(Clone, Default)]
struct TicketKeys(Vec<[u8; 32]>);

impl TicketKeys {
    const KEPT: usize = 4;

    fn with_another(mut self) -> Result<Self, Failure> {
        let mut key = [0; 32];
        SystemRandom::new().fill(&mut key).map_err(|_| Failure::new("no random key"))?;
        self.0.insert(0, key);
        self.0.truncate(Self::KEPT);
        Ok(self)
    }

    fn cipher(key: &[u8; 32]) -> Option<LessSafeKey> {
        Some(LessSafeKey::new(UnboundKey::new(&AES_256_GCM, key).ok()?))
    }
}

impl fmt::Debug for TicketKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
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

/// A ticket is a random nonce and the sealed session.
impl ProducesTickets for TicketKeys {
    fn enabled(&self) -> bool {
        true
    }

    fn lifetime(&self) -> u32 {
        60 * 60
    }

    fn encrypt(&self, session: &[u8]) -> Option<Vec<u8>> {
        let mut nonce = [0; NONCE_LEN];
        SystemRandom::new().fill(&mut nonce).ok()?;
        let (key, mut sealed) = (Self::cipher(self.0.first()?)?, session.to_vec());
        let unique = Nonce::assume_unique_for_key(nonce);
        key.seal_in_place_append_tag(unique, Aad::empty(), &mut sealed).ok()?;
        Some([&nonce[..], &sealed].concat())
    }

    fn decrypt(&self, ticket: &[u8]) -> Option<Vec<u8>> {
        let (nonce, sealed) = ticket.split_first_chunk()?;
        self.0.iter().find_map(|key| {
            let (key, mut session) = (Self::cipher(key)?, sealed.to_vec());
            let nonce = Nonce::assume_unique_for_key(*nonce);
            let length = key.open_in_place(nonce, Aad::empty(), &mut session).ok()?.len();
            session.truncate(length);
            Some(session)
        })
    }
}
