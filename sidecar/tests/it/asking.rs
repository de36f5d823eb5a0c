//! Calls that wait for a human whom the operator asks.

use std::{net::SocketAddr, pin::Pin, sync::Arc};

use aegis_api::approvals::proto::{
    Answer, Case, Reply, State,
    approvals_server::{Approvals, ApprovalsServer},
    reply::What,
};
use aegis_audit::Kind;
use aegis_core::approval::{Factor, Vote};
use aegis_sidecar::pod::approvals::ask;
use futures::{Stream, StreamExt as _};
use http::Method;
use serde_json::json;
use tokio::{net::TcpListener, sync::mpsc};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::{Request, Response, Status, Streaming, transport::Endpoint};

use crate::world::{PATIENCE, World, call, next, world_with};

/// One stream of a sidecar, as the operator has it.
struct Asked {
    cases: Streaming<Case>,
    reply: mpsc::Sender<Result<Reply, Status>>,
}

impl Asked {
    async fn case(&mut self) -> Case {
        tokio::time::timeout(PATIENCE, self.cases.next()).await.unwrap().unwrap().unwrap()
    }

    async fn answer(&self, id: &str, approver: &str, approve: bool) {
        let answer = Answer { id: id.into(), approver: approver.into(), approve };
        let reply = Reply { what: Some(What::Answer(answer)) };
        self.reply.send(Ok(reply)).await.unwrap();
    }
}

/// Hands each stream to the test.
struct Desk(mpsc::Sender<Asked>);

#[tonic::async_trait]
impl Approvals for Desk {
    type AskStream = Pin<Box<dyn Stream<Item = Result<Reply, Status>> + Send>>;

    async fn ask(
        &self,
        request: Request<Streaming<Case>>,
    ) -> Result<Response<Self::AskStream>, Status> {
        let (reply, replies) = mpsc::channel(8);
        let asked = Asked { cases: request.into_inner(), reply };
        self.0.send(asked).await.map_err(|_| Status::unavailable("the test has ended"))?;
        Ok(Response::new(Box::pin(ReceiverStream::new(replies))))
    }
}

/// An operator that the world's sidecar asks, in the clear.
struct Operator {
    streams: mpsc::Receiver<Asked>,
    _stop: DropGuard,
}

impl Operator {
    async fn of(world: &World) -> Self {
        let (tell, streams) = mpsc::channel(1);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address: SocketAddr = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        let serving = tonic::transport::Server::builder()
            .add_service(ApprovalsServer::new(Desk(tell)))
            .serve_with_incoming_shutdown(
                TcpListenerStream::new(listener),
                stop.clone().cancelled_owned(),
            );
        tokio::spawn(serving);
        let channel = Endpoint::from_shared(format!("http://{address}")).unwrap().connect_lazy();
        tokio::spawn(ask(channel, Arc::clone(&world.kernel), stop.clone()));
        Self { streams, _stop: stop.drop_guard() }
    }

    async fn stream(&mut self) -> Asked {
        tokio::time::timeout(PATIENCE, self.streams.recv()).await.unwrap().unwrap()
    }
}

#[tokio::test]
async fn a_held_call_is_told_without_arguments_and_goes_when_a_person_agrees() {
    let world = world_with(json!({ "limits": { "holdSecs": 60 } })).await;
    let mut operator = Operator::of(&world).await;
    let mut asked = operator.stream().await;
    let mut body = world.open(Method::POST, &[], call(1, "risky").to_string()).await.into_body();
    assert!(next(&mut body).await.unwrap().starts_with(": held for approval "));
    let case = asked.case().await;
    assert_eq!((case.state(), case.tool.as_str(), case.quorum), (State::Pending, "risky", 1));
    assert_eq!(case.requester, crate::world::AGENT);
    assert!(!format!("{case:?}").contains("hi"), "{case:?}");

    // What nobody asked, and what an agent says, changes nothing.
    asked.answer("nothing000", "grace@acme.example", true).await;
    asked.answer(&case.id, crate::world::AGENT, true).await;
    asked.answer(&case.id, "grace@acme.example", true).await;
    let answer = next(&mut body).await.unwrap();
    assert!(answer.contains("\"result\":{}"), "{answer}");
    let votes = world.recorded(Kind::ApprovalVote, 1).await;
    let vote: Vote = serde_json::from_value(votes[0].detail["vote"].clone()).unwrap();
    assert_eq!((votes.len(), vote.approver.as_str()), (1, "grace@acme.example"));
    assert_eq!((vote.approve, vote.factor), (true, Factor::Account));
    // Its end is told, whatever was told in between.
    while asked.case().await.state() != State::Used {}
}

#[tokio::test]
async fn an_answer_that_comes_twice_or_after_a_break_counts_once() {
    let world = world_with(json!({ "limits": { "holdSecs": 60 } })).await;
    let mut body = world.open(Method::POST, &[], call(1, "risky").to_string()).await.into_body();
    next(&mut body).await.unwrap();
    // What waited before the operator was reached is told, and told again on each stream.
    let mut operator = Operator::of(&world).await;
    let mut first = operator.stream().await;
    let case = first.case().await;
    drop(first);
    let mut asked = operator.stream().await;
    assert_eq!(asked.case().await, case);
    asked.answer(&case.id, "grace@acme.example", false).await;
    asked.answer(&case.id, "grace@acme.example", false).await;
    asked.answer(&case.id, "grace@acme.example", true).await;
    assert!(next(&mut body).await.unwrap().contains("approval_denied"));
    assert_eq!(asked.case().await.state(), State::Denied);
    assert_eq!(world.upstream.seen().len(), 0);
    assert_eq!(world.recorded(Kind::ApprovalVote, 1).await.len(), 1);
}
