//! A member that does not take what it asks for.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use anyhow::Result;
use proto::root::Fingerprint;
use proto::wire;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpSocket, TcpStream};
use tonic::transport::Endpoint;

use super::{AUTHORITY, Line, Member, Talk};

/// What its kernel takes, bytes: far less than a map.
const WINDOW: u32 = 4096;

impl Member {
    /// A session that serves, has asked for its map, and reads nothing of its connection any more. It may still speak.
    pub async fn deaf(&self, server: SocketAddr, root: Fingerprint) -> Result<Talk> {
        let socket = TcpSocket::new_v4()?;
        socket.set_recv_buffer_size(WINDOW)?;
        let is_deaf = Arc::new(AtomicBool::new(false));
        let ear = Ear { stream: socket.connect(server).await?, is_deaf: is_deaf.clone() };
        let line = Line::over(ear, root, Endpoint::from_static(AUTHORITY)).await?;
        let mut client = line.client.clone();
        let talk = line.open(self, self.hello(1, true)).await?.activated().await?;
        is_deaf.store(true, Ordering::Relaxed);
        tokio::spawn(async move { client.fetch_map(wire::FetchMapRequest { have: Vec::new() }).await });
        Ok(talk)
    }
}

/// A connection of which nothing is read from a moment on.
struct Ear {
    stream: TcpStream,
    is_deaf: Arc<AtomicBool>,
}

impl AsyncRead for Ear {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        match self.is_deaf.load(Ordering::Relaxed) {
            true => Poll::Pending,
            false => Pin::new(&mut self.stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Ear {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
