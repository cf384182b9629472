//! Presence: beside the map, across servers.

use super::{agent::Agent, server::TestServer};
use proto::{
    session::{AgentMessage, MapState, Presence},
    statement::NodeId,
};

fn id(server: &TestServer, agent: &Agent) -> NodeId {
    server.running.server.cluster.state().node_by_key(&agent.key()).unwrap().id
}

#[tokio::test]
async fn an_agent_is_told_who_is_online_and_every_change_of_it() {
    let dir = tempfile::tempdir().unwrap();
    let (one, two) = (TestServer::start(dir.path(), 1).await, TestServer::start(dir.path(), 2).await);
    let (a, b) = (Agent::enrolled("a", &one).await, Agent::enrolled("b", &one).await);
    let mut talk = a.serving(&one, 1, MapState::default()).await;
    let whole = talk.presence().await;
    assert_eq!(whole, Presence { whole: true, online: vec![], offline: vec![] });
    let other = b.serving(&two, 1, MapState::default()).await;
    let came = talk.presence().await;
    assert_eq!(came, Presence { whole: false, online: vec![id(&one, &b)], offline: vec![] });
    other.say(AgentMessage::Leave { logout: false });
    let went = talk.presence().await;
    assert_eq!(went, Presence { whole: false, online: vec![], offline: vec![id(&one, &b)] });
}

#[tokio::test]
async fn an_agent_that_moves_to_another_server_does_not_flicker() {
    let dir = tempfile::tempdir().unwrap();
    let (one, two) = (TestServer::start(dir.path(), 1).await, TestServer::start(dir.path(), 2).await);
    let [a, b, c] = [
        Agent::enrolled("a", &one).await,
        Agent::enrolled("b", &one).await,
        Agent::enrolled("c", &one).await,
    ];
    let mut watcher = a.serving(&one, 1, MapState::default()).await;
    let mover = b.serving(&one, 1, MapState::default()).await;
    watcher.presence().await;
    assert_eq!(watcher.presence().await.online, [id(&one, &b)]);
    drop(mover);
    let _moved = b.serving(&two, 2, MapState::default()).await;
    // Another's coming is the next news, so nothing was said of the move before it.
    let _third = c.serving(&two, 1, MapState::default()).await;
    let next = watcher.presence().await;
    assert_eq!((next.online, next.offline), (vec![id(&one, &c)], vec![]));
}
