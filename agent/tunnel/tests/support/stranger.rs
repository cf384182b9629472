//! A peer made of the noise library and a plain socket, so that its datagrams can be kept, repeated and bent.

use std::{net::UdpSocket, time::Duration};

use agent_tunnel::{Command, Rule};
use boringtun::noise::{Tunn, TunnResult};

use super::{Netns, Node, PATIENCE, peer, secret};

/// Number 7, on loopback beside the node.
pub struct Stranger {
    pub socket: UdpSocket,
    pub noise: Tunn,
}

impl Stranger {
    pub fn new(netns: &Netns, node: &Node) -> Self {
        let address = ("127.0.0.1", node.tunnel.listen_port());
        let socket = netns.run(|| UdpSocket::bind("127.0.0.1:0").unwrap());
        socket.connect(address).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        let noise = Tunn::new(secret(7).into(), node.key.0.into(), None, None, 1, None);
        Self { socket, noise }
    }

    pub fn initiation(&mut self) -> Vec<u8> {
        let mut buffer = [0; 256];
        match self.noise.format_handshake_initiation(&mut buffer, true) {
            TunnResult::WriteToNetwork(message) => message.to_vec(),
            other => panic!("{other:?}"),
        }
    }

    /// Waits for a datagram and lets the library answer it.
    pub fn turn(&mut self) -> Vec<u8> {
        let (mut datagram, mut buffer) = ([0; 256], [0; 256]);
        let len = self.socket.recv(&mut datagram).unwrap();
        match self.noise.decapsulate(None, &datagram[..len], &mut buffer) {
            TunnResult::WriteToNetwork(message) => message.to_vec(),
            other => panic!("{other:?}"),
        }
    }

    /// A whole handshake; the initiation that began it.
    pub fn connect(&mut self) -> Vec<u8> {
        let initiation = self.initiation();
        self.socket.send(&initiation).unwrap();
        let keepalive = self.turn();
        self.socket.send(&keepalive).unwrap();
        initiation
    }

    pub fn is_answered(&self) -> bool {
        self.socket.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        self.socket.recv(&mut [0; 256]).is_ok()
    }
}

pub fn node_and_stranger() -> (Netns, Node, Stranger) {
    guarded_node_and_stranger(None)
}

/// What the stranger may open on the node.
pub fn guarded_node_and_stranger(rules: Option<Vec<Rule>>) -> (Netns, Node, Stranger) {
    let netns = Netns::new();
    let node = Node::start_filtered(&netns, 1, 0, rules);
    node.tunnel.command(Command::Upsert(peer(7)));
    let stranger = Stranger::new(&netns, &node);
    (netns, node, stranger)
}
