//! How large a message may be. tonic knows one limit for all calls of a service; here the list of objects that a member sends with FetchMap may be
//! large, and everything else, above all what strangers send, is small.

use crate::{connection::ConnectionState, session::ControlService};
use proto::wire::control_server::{ControlServer, SERVICE_NAME};
use std::{
    sync::Arc,
    task::{Context, Poll},
};
use tonic::{
    body::Body,
    codegen::{Service, http},
    server::NamedService,
};

/// Of a member's list of objects: about 70 bytes each.
const MAX_LIST_BYTES: usize = 16 * 1024 * 1024;
const MAX_MESSAGE_BYTES: usize = 64 * 1024;
const FETCH_MAP: &str = "/FetchMap";

/// The control service, with a limit for each call.
#[derive(Clone)]
pub(crate) struct LimitedService {
    members: ControlServer<ControlService>,
    strangers: ControlServer<ControlService>,
}

impl LimitedService {
    pub(crate) fn new(service: ControlService) -> Self {
        let service = ControlServer::new(service);
        Self {
            members: service.clone().max_decoding_message_size(MAX_LIST_BYTES),
            strangers: service.max_decoding_message_size(MAX_MESSAGE_BYTES),
        }
    }
}

impl NamedService for LimitedService {
    const NAME: &'static str = SERVICE_NAME;
}

impl Service<http::Request<Body>> for LimitedService {
    type Response = http::Response<Body>;
    type Error = std::convert::Infallible;
    type Future = <ControlServer<ControlService> as Service<http::Request<Body>>>::Future;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let connection = request.extensions().get::<Arc<ConnectionState>>();
        let is_member = connection.is_some_and(|connection| connection.session().is_some());
        match is_member && request.uri().path().ends_with(FETCH_MAP) {
            true => self.members.call(request),
            false => self.strangers.call(request),
        }
    }
}
