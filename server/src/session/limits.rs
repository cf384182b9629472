//! How large a message may be. tonic knows one limit for all calls of a service; here the list of objects that a member sends with FetchMap may be
//! as large as the cluster needs, and everything else, above all what strangers send, is small.

use crate::{
    connection::ConnectionState,
    serve::Server,
    session::{ControlService, fetch::Turn},
};
use proto::wire::control_server::{ControlServer, SERVICE_NAME};
use std::{
    sync::Arc,
    task::{Context, Poll},
};
use tokio::time::timeout;
use tonic::{
    Status,
    body::Body,
    codegen::{Service, http},
    server::NamedService,
};

/// Of each object in a member's list: about 70 are needed.
const LISTED_OBJECT_BYTES: usize = 128;
/// A member may list what has gone since: it must get over a database that was restored, too.
const LISTED_OBJECTS_SPARE: usize = 4096;
const MAX_MESSAGE_BYTES: usize = 64 * 1024;
const FETCH_MAP: &str = "/FetchMap";

/// The control service, with a limit for each call.
#[derive(Clone)]
pub(crate) struct LimitedService {
    server: Arc<Server>,
    calls: ControlServer<ControlService>,
}

impl LimitedService {
    pub(crate) fn new(server: Arc<Server>) -> Self {
        let calls = ControlServer::new(ControlService(server.clone()));
        Self { calls: calls.max_decoding_message_size(MAX_MESSAGE_BYTES), server }
    }

    fn max_list_bytes(&self) -> usize {
        let objects = self.server.atlas.load().object_count() + LISTED_OBJECTS_SPARE;
        objects * LISTED_OBJECT_BYTES
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

    fn call(&mut self, mut request: http::Request<Body>) -> Self::Future {
        let Some(connection) = request.extensions().get::<Arc<ConnectionState>>().cloned() else {
            return self.calls.call(request);
        };
        if !request.uri().path().ends_with(FETCH_MAP) {
            return self.calls.call(request);
        }
        let turn = match Turn::take(&connection) {
            Ok(turn) => turn,
            Err(status) => return Box::pin(async move { Ok(status.into_http()) }),
        };
        request.extensions_mut().insert(turn);
        let patience = self.server.gate.patience().fetch;
        let answer = self.calls.clone().max_decoding_message_size(self.max_list_bytes()).call(request);
        Box::pin(async move {
            let slow =
                |_elapsed| Ok(Status::deadline_exceeded("the list of objects did not come").into_http());
            timeout(patience, answer).await.unwrap_or_else(slow)
        })
    }
}
