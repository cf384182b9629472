//! The gRPC service: which call does what.

use crate::{
    connection::ConnectionState,
    serve::Server,
    session::{enrol, fetch, session::Session},
};
use proto::wire::{self, control_server::Control};
use std::sync::Arc;
use tonic::{Request, Response, Status, Streaming};

/// The control service of a server.
#[derive(Clone)]
pub(crate) struct ControlService(pub(crate) Arc<Server>);

#[tonic::async_trait]
impl Control for ControlService {
    type SessionStream = Session;
    type FetchMapStream = fetch::Chunks;

    async fn enrol(
        &self,
        request: Request<wire::EnrolRequest>,
    ) -> Result<Response<wire::EnrolResponse>, Status> {
        let connection = connection(&request)?;
        Ok(Response::new(enrol::enrol(&self.0, &connection, request.into_inner()).await))
    }

    async fn session(
        &self,
        request: Request<Streaming<wire::AgentMessage>>,
    ) -> Result<Response<Session>, Status> {
        let connection = connection(&request)?;
        Ok(Response::new(Session::new(self.0.clone(), connection, request.into_inner())))
    }

    async fn fetch_map(
        &self,
        request: Request<wire::FetchMapRequest>,
    ) -> Result<Response<fetch::Chunks>, Status> {
        let connection = connection(&request)?;
        let turn = request.extensions().get::<fetch::Turn>().cloned();
        fetch::fetch(&self.0, &connection, turn.as_ref(), request.into_inner()).map(Response::new)
    }
}

fn connection<T>(request: &Request<T>) -> Result<Arc<ConnectionState>, Status> {
    let connection = request.extensions().get::<Arc<ConnectionState>>();
    connection.inspect(|connection| connection.called());
    connection.cloned().ok_or_else(|| Status::internal("the request came over no known connection"))
}
