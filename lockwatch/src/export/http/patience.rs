//! A connection on which a client cannot take its time.

use std::{
    io::{self, ErrorKind, IoSlice},
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, Sleep, sleep},
};

/// Ends with an error when a request, from its first byte until the answer is handed to the
/// kernel, takes too long, or when nothing is asked for too long.
///
/// hyper bounds how long a request's head takes, but not how slowly an answer is read.
#[derive(Debug)]
pub(super) struct Patient<S> {
    stream: S,
    up: Pin<Box<Sleep>>,
    stage: Stage,
    request: Duration,
    idle: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Idle,
    /// Something of a request is here, or nothing has ever been.
    Asked,
    /// Something of the answer is written, and not yet gone.
    Answered,
}

impl<S> Patient<S> {
    /// The first request is waited for no longer than it may take.
    pub(super) fn new(stream: S, request: Duration, idle: Duration) -> Self {
        Self {
            stream,
            up: Box::pin(sleep(request)),
            stage: Stage::Asked,
            request,
            idle,
        }
    }

    fn turn(&mut self, stage: Stage) {
        if self.stage == Stage::Idle {
            self.up.as_mut().reset(Instant::now() + self.request);
        }
        if stage == Stage::Idle {
            self.up.as_mut().reset(Instant::now() + self.idle);
        }
        self.stage = stage;
    }

    /// Fails when the time is up, else sees to it that the task is woken then.
    fn check(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        match self.up.as_mut().poll(cx) {
            Poll::Ready(()) => Err(ErrorKind::TimedOut.into()),
            Poll::Pending => Ok(()),
        }
    }

    fn wrote(
        &mut self,
        cx: &mut Context<'_>,
        written: Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        self.turn(Stage::Answered);
        self.check(cx)?;
        written
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Patient<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.check(cx)?;
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buffer))?;
        if self.stage == Stage::Idle && buffer.filled().len() > before {
            self.turn(Stage::Asked);
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Patient<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.wrote(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, bytes);
        self.wrote(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.stream).poll_flush(cx))?;
        if self.stage == Stage::Answered {
            self.turn(Stage::Idle);
        }
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check(cx)?;
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
