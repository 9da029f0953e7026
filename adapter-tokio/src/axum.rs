use std::io;
use std::net::SocketAddr;

use axum::serve::Listener;
use tokio::net::{TcpStream, UnixStream, unix};

use crate::{Connection, TcpListener, UnixListener, pause_after};

macro_rules! serve {
    ($listener:ty, $stream:ty, $address:ty) => {
        /// For `axum::serve`, which expects a listener to see to its own errors.
        impl Listener for $listener {
            type Io = Connection<$stream>;
            type Addr = $address;

            async fn accept(&mut self) -> (Self::Io, Self::Addr) {
                loop {
                    match <$listener>::accept(self).await {
                        Ok(accepted) => return accepted,
                        Err(error) => {
                            if let Some(pause) = pause_after(&error) {
                                tokio::time::sleep(pause).await;
                            }
                        }
                    }
                }
            }

            fn local_addr(&self) -> io::Result<Self::Addr> {
                <$listener>::local_addr(self)
            }
        }
    };
}

serve!(TcpListener, TcpStream, SocketAddr);
serve!(UnixListener, UnixStream, unix::SocketAddr);
