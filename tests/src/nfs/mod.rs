//! An NFS server on the loopback interface that answers until it is told to be mute.
//!
//! As much of NFS version 3 as a mount with one file asks for: the two programs, MOUNT and NFS,
//! on one port, over TCP. `xdr` is how numbers and bytes are sent, `protocol` what is answered,
//! `server` the thread that does, or does not.

mod protocol;
mod server;
mod xdr;

pub(crate) use self::{
    protocol::{FILE_BYTES, FILE_NAME},
    server::Server,
};
