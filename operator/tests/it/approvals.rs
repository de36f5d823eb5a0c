//! From a sidecar's case to people, and their answers back to that sidecar alone.

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc};

use aegis_api::approvals::proto::{
    Case, Reply, State, approvals_client::ApprovalsClient, reply::What,
};
use aegis_identity::source::SvidSource;
use aegis_operator::{
    approvals::{Desk, MAX_OPEN, Request, Requests},
    clock,
    distribution::{Publisher, Served, serve},
};
use aegis_resources::{
    approval::{Answer, AnswerVerdict, ApprovalRequestSpec, ApprovalState, ApprovalStatus},
    kinds::ApprovalRequestObjectSpec,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use parking_lot::Mutex;
use tokio::{net::TcpListener, sync::mpsc, task::JoinHandle};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::Streaming;

use crate::{
    authority::Authority,
    distribution::key,
    follower::{OPERATOR, PATIENCE, SIDECAR, nothing_revoked, to},
};

const OTHER: &str = "spiffe://acme.example/ns/shop/sa/bot/agent/seller";
const ID: &str = "9s01zq5rj7";

/// An API server as far as requests go: what is written here is seen by whoever watches.
#[derive(Clone, Default)]
pub(crate) struct Board {
    requests: Arc<Mutex<BTreeMap<String, Request>>>,
    watched: Option<mpsc::UnboundedSender<Request>>,
}

impl Board {
    fn put(&self, request: Request) {
        self.requests.lock().insert(request.name().to_owned(), request.clone());
        if let Some(watched) = &self.watched {
            watched.send(request).unwrap();
        }
    }

    fn get(&self, name: &str) -> Option<Request> {
        self.requests.lock().get(name).cloned()
    }

    fn state(&self, name: &str) -> Option<ApprovalState> {
        self.get(name)?.status?.state
    }

    /// As admission stores an answer.
    fn answer(&self, name: &str, by: &str, verdict: AnswerVerdict) {
        let mut request = self.get(name).unwrap();
        let at = "2026-01-01T00:00:00Z".into();
        request.spec.as_mut().unwrap().0.answers.push(Answer { by: by.into(), verdict, at });
        self.put(request);
    }

    async fn until(&self, name: &str, state: ApprovalState) {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        while self.state(name) != Some(state) {
            assert!(tokio::time::Instant::now() < deadline, "{name} is {:?}", self.state(name));
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    }
}

impl Requests for Board {
    async fn create(
        &self,
        namespace: &str,
        name: &str,
        spec: ApprovalRequestSpec,
    ) -> Result<Request, String> {
        if let Some(there) = self.get(name) {
            return Ok(there);
        }
        let metadata = ObjectMeta {
            name: Some(name.into()),
            namespace: Some(namespace.into()),
            ..ObjectMeta::default()
        };
        let spec = Ok(ApprovalRequestObjectSpec(spec));
        let made = Request { metadata, spec, status: None };
        self.put(made.clone());
        Ok(made)
    }

    async fn write_status(&self, request: &Request, status: ApprovalStatus) -> Result<(), String> {
        let mut request = self.get(request.name()).ok_or("gone")?;
        request.status = Some(status);
        self.put(request);
        Ok(())
    }

    async fn delete(&self, request: &Request) -> Result<(), String> {
        self.requests.lock().remove(request.name());
        Ok(())
    }
}

/// An operator that serves, with nobody's requests.
struct Operator {
    authority: Authority,
    board: Board,
    desk: Desk<Board>,
    address: SocketAddr,
    stop: CancellationToken,
    serving: JoinHandle<()>,
}

impl Operator {
    async fn start() -> Self {
        let authority = Authority::new();
        let source = authority.source(OPERATOR).await;
        let (watched, mut seen) = mpsc::unbounded_channel();
        let board = Board { watched: Some(watched), ..Board::default() };
        let desk = Desk::new(board.clone());
        let watching = desk.clone();
        tokio::spawn(async move {
            while let Some(request) = seen.recv().await {
                watching.seen(request);
            }
        });
        let stop = CancellationToken::new();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let served = Served { publisher: Publisher::new(key()), desk: desk.clone() };
        let ending = stop.clone();
        let serving = tokio::spawn(async move {
            serve(listener, &source, nothing_revoked(), served, ending).await.unwrap();
        });
        Self { authority, board, desk, address, stop, serving }
    }

    async fn sidecar(&self, id: &str) -> Arc<SvidSource> {
        self.authority.source(id).await
    }

    async fn end(self) {
        self.stop.cancel();
        self.serving.await.unwrap();
    }
}

/// A sidecar that asks.
struct Asker {
    tell: mpsc::Sender<Case>,
    replies: Streaming<Reply>,
}

impl Asker {
    async fn connect(operator: &Operator, source: &Arc<SvidSource>) -> Result<Self, tonic::Status> {
        let (tell, told) = mpsc::channel(8);
        let mut client = ApprovalsClient::new(to(operator.address, source));
        let replies = client.ask(ReceiverStream::new(told)).await?.into_inner();
        Ok(Self { tell, replies })
    }

    async fn tell(&self, case: &Case) {
        self.tell.send(case.clone()).await.unwrap();
    }

    async fn next(&mut self) -> What {
        let reply = tokio::time::timeout(PATIENCE, self.replies.message()).await.unwrap();
        reply.unwrap().unwrap().what.unwrap()
    }

    async fn answer(&mut self) -> (String, String, bool) {
        match self.next().await {
            What::Answer(answer) => (answer.id, answer.approver, answer.approve),
            What::Refused(refused) => panic!("{refused:?}"),
        }
    }

    async fn refused(&mut self) -> String {
        match self.next().await {
            What::Refused(refused) => refused.why,
            What::Answer(answer) => panic!("{answer:?}"),
        }
    }
}

fn case(id: &str, state: State) -> Case {
    Case {
        id: id.into(),
        requester: OTHER.into(),
        sponsor: "ada@acme.example".into(),
        action: aegis_core::Digest::of(id.as_bytes()).to_string(),
        server: "buyer".into(),
        method: "tools/call".into(),
        tool: "write_note".into(),
        reason: "Changes to notes need a human.".into(),
        risk: 400,
        tier: "L2".into(),
        quorum: 2,
        mfa: false,
        expires_at: clock::now().as_secs() / 3600 * 3600 + 7200,
        state: state.into(),
    }
}

#[tokio::test]
async fn a_case_is_shown_and_every_answer_comes_back() {
    let operator = Operator::start().await;
    let source = operator.sidecar(SIDECAR).await;
    // Before it knows what there is, it would make again what is there already.
    let status = Asker::connect(&operator, &source).await.err().unwrap();
    assert!(status.message().contains("just started"), "{status}");
    operator.desk.all_listed(Vec::new());

    let mut asker = Asker::connect(&operator, &source).await.unwrap();
    asker.tell(&case(ID, State::Pending)).await;
    operator.board.until(ID, ApprovalState::Pending).await;
    let request = operator.board.get(ID).unwrap();
    let spec = request.spec.clone().unwrap().0;
    assert_eq!(request.namespace(), "shop");
    assert_eq!((spec.enforced_by.as_str(), spec.requester.as_str()), (SIDECAR, OTHER));
    assert_eq!((spec.tool.as_deref(), spec.quorum), (Some("write_note"), 2));

    operator.board.answer(ID, "grace@acme.example", AnswerVerdict::Approve);
    let first = (ID.to_owned(), "grace@acme.example".to_owned(), true);
    assert_eq!(asker.answer().await, first);
    drop(asker);

    // Whatever may have been lost is told again, and only once on one stream.
    let mut again = Asker::connect(&operator, &source).await.unwrap();
    again.tell(&case(ID, State::Pending)).await;
    assert_eq!(again.answer().await, first);
    operator.board.answer(ID, "ada@acme.example", AnswerVerdict::Deny);
    assert_eq!(again.answer().await, (ID.to_owned(), "ada@acme.example".to_owned(), false));
    again.tell(&case(ID, State::Denied)).await;
    operator.board.until(ID, ApprovalState::Denied).await;
    let status = operator.board.get(ID).unwrap().status.unwrap();
    let approved = status.common.condition("Approved").unwrap();
    assert_eq!(approved.reason, "Denied");
    operator.end().await;
}

#[tokio::test]
async fn nobody_speaks_for_another_or_hears_its_answers() {
    let operator = Operator::start().await;
    operator.desk.all_listed(Vec::new());
    let (own, other) = (operator.sidecar(SIDECAR).await, operator.sidecar(OTHER).await);
    let mut asker = Asker::connect(&operator, &own).await.unwrap();
    asker.tell(&case(ID, State::Pending)).await;
    operator.board.until(ID, ApprovalState::Pending).await;

    // The same id, told by another agent of the namespace.
    let mut impostor = Asker::connect(&operator, &other).await.unwrap();
    impostor.tell(&case(ID, State::Approved)).await;
    assert!(impostor.refused().await.contains("another agent's"));
    impostor.tell(&case(ID, State::Used)).await;
    let mine = case("0therc4se0", State::Pending);
    impostor.tell(&mine).await;
    operator.board.until(&mine.id, ApprovalState::Pending).await;
    assert_eq!(operator.board.state(ID), Some(ApprovalState::Pending));
    operator.board.answer(ID, "grace@acme.example", AnswerVerdict::Approve);
    operator.board.answer(&mine.id, "grace@acme.example", AnswerVerdict::Deny);
    assert_eq!(impostor.answer().await.0, mine.id);
    assert_eq!(asker.answer().await.0, ID);
    operator.end().await;
}

/// People answer what they have seen.
#[tokio::test]
async fn an_answer_to_another_question_does_not_count() {
    let operator = Operator::start().await;
    operator.desk.all_listed(Vec::new());
    let source = operator.sidecar(SIDECAR).await;
    let mut asker = Asker::connect(&operator, &source).await.unwrap();
    asker.tell(&case(ID, State::Pending)).await;
    operator.board.until(ID, ApprovalState::Pending).await;
    let harmless = operator.board.get(ID).unwrap();
    let mut changed = harmless.clone();
    changed.spec.as_mut().unwrap().0.tool = Some("read_note".into());
    operator.board.put(changed);
    operator.board.answer(ID, "grace@acme.example", AnswerVerdict::Approve);
    // Changes are looked at in order: this answer comes after that one would have.
    let later = case("0therc4se0", State::Pending);
    asker.tell(&later).await;
    operator.board.until(&later.id, ApprovalState::Pending).await;
    operator.board.answer(&later.id, "ada@acme.example", AnswerVerdict::Approve);
    assert_eq!(asker.answer().await.0, later.id);
    // Its own question stands again, with an answer to it.
    operator.board.put(harmless);
    operator.board.answer(ID, "ada@acme.example", AnswerVerdict::Deny);
    assert_eq!(asker.answer().await.1, "ada@acme.example");
    operator.end().await;
}

#[tokio::test]
async fn one_agent_fills_nobodys_screen() {
    let operator = Operator::start().await;
    operator.desk.all_listed(Vec::new());
    let source = operator.sidecar(SIDECAR).await;
    let mut asker = Asker::connect(&operator, &source).await.unwrap();
    for number in 0..MAX_OPEN {
        asker.tell(&case(&format!("case{number:06}"), State::Pending)).await;
    }
    asker.tell(&case(ID, State::Pending)).await;
    assert!(asker.refused().await.contains("too many"));
    assert!(operator.board.get(ID).is_none());
    // Another agent is not held up; and what has ended makes room.
    let other = operator.sidecar(OTHER).await;
    let another = Asker::connect(&operator, &other).await.unwrap();
    another.tell(&case("0therc4se0", State::Pending)).await;
    operator.board.until("0therc4se0", ApprovalState::Pending).await;
    asker.tell(&case("case000000", State::Denied)).await;
    operator.board.until("case000000", ApprovalState::Denied).await;
    asker.tell(&case(ID, State::Pending)).await;
    operator.board.until(ID, ApprovalState::Pending).await;
    operator.end().await;
}
