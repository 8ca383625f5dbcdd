//! The address that is listened on.

use std::{
    io::{self, ErrorKind},
    net::{SocketAddr, TcpListener as Listener},
};

use thiserror::Error;
use tokio::net::TcpListener;

/// Why an address cannot be listened on.
#[derive(Debug, Error)]
pub enum ListenError {
    /// Another program does.
    #[error(
        "another program listens on {0}: choose another port with --listen, or end that program"
    )]
    Taken(SocketAddr),
    /// It is no address of this host.
    #[error(
        "{0} is no address of this host: --listen 127.0.0.1:{port} is reached from this host \
         only, 0.0.0.0:{port} from everywhere",
        port = .0.port()
    )]
    NotOurs(SocketAddr),
    /// The port is below 1024, or a policy forbids it.
    #[error("not allowed to listen on {0}: choose a port from 1024 on with --listen")]
    Denied(SocketAddr),
    /// Anything else.
    #[error("cannot listen on {0}")]
    Failed(SocketAddr, #[source] io::Error),
}

/// Listens on an address; port 0: on a free one, which the listener tells.
///
/// # Errors
/// See [`ListenError`].
pub fn listen(address: SocketAddr) -> Result<TcpListener, ListenError> {
    let open = || {
        let listener = Listener::bind(address)?;
        listener.set_nonblocking(true)?;
        TcpListener::from_std(listener)
    };
    open().map_err(|error: io::Error| match error.kind() {
        ErrorKind::AddrInUse => ListenError::Taken(address),
        ErrorKind::AddrNotAvailable => ListenError::NotOurs(address),
        ErrorKind::PermissionDenied => ListenError::Denied(address),
        _ => ListenError::Failed(address, error),
    })
}

/// What a person should know of an address that others than this host reach; `None` for
/// loopback.
pub fn exposure(address: SocketAddr) -> Option<String> {
    let ip = address.ip().to_canonical();
    (!ip.is_loopback()).then(|| {
        format!(
            "{address} is reached by other hosts: the metrics have neither TLS nor a password, and \
             name tasks and kernel functions; better listen on 127.0.0.1:{} and put a proxy \
             before it",
            address.port()
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> SocketAddr {
        text.parse().expect("an address")
    }

    #[tokio::test]
    async fn a_port_that_is_taken_is_told_with_a_remedy() {
        let first = listen(address("127.0.0.1:0")).expect("a free port");
        let taken = first.local_addr().expect("bound");
        let error = listen(taken).expect_err("it is taken");
        assert!(matches!(error, ListenError::Taken(at) if at == taken));
        assert!(error.to_string().contains("--listen"), "{error}");
    }

    #[tokio::test]
    async fn an_address_of_somebody_else_is_told() {
        // Of a range that is kept for documentation (RFC 5737).
        let error = listen(address("192.0.2.1:9000")).expect_err("it is not ours");
        insta::assert_snapshot!(error);
    }

    #[test]
    fn only_what_others_reach_is_warned_of() {
        for own in [
            "127.0.0.1:1",
            "127.8.0.1:1",
            "[::1]:1",
            "[::ffff:127.0.0.1]:1",
        ] {
            assert_eq!(exposure(address(own)), None);
        }
        for reached in ["0.0.0.0:1", "[::]:1", "10.0.0.1:1", "[::ffff:10.0.0.1]:1"] {
            let warning = exposure(address(reached)).expect("others reach it");
            assert!(warning.starts_with(reached), "{warning}");
        }
    }
}
