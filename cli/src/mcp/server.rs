//! The MCP side: what is offered, and the way of a call: read → resolved → decided → done → concluded.

use std::{path::PathBuf, sync::Arc};

use aegis_core::decision::Reason;
use rmcp::{
    ErrorData, RoleServer, ServerHandler,
    model::{
        CacheScope, CallToolRequestParams, CallToolResponse, CallToolResult, Implementation,
        ListToolsResult, PaginatedRequestParams, ResultType, ServerCapabilities, ServerConfig,
    },
    service::RequestContext,
};
use serde_json::{Map, Value};
use tokio_util::sync::CancellationToken;

use super::{
    answer::{self, Answer},
    catalogue::{self, Call, CallError},
    command::Environment,
    daemon::{Connection, Daemon, NoPermission, Question},
    fetch::{self, Reach},
    shell,
    tree::{Root, TreeError},
};

/// How long the list of tools may be cached: it does not change. Milliseconds.
const FRESH_FOR: u64 = 3_600_000;

/// What the tools work with.
#[derive(Debug)]
pub(super) struct Setup {
    /// Decides.
    pub(super) daemon: Daemon,
    /// The folder that the agent works in.
    pub(super) workspace: Arc<Root>,
    /// Where agents' memories are.
    pub(super) memory: PathBuf,
    /// What commands see of the environment.
    pub(super) environment: Environment,
    /// Hosts that requests may go to wherever they are.
    pub(super) reach: Vec<Reach>,
}

/// The server of one client.
#[derive(Clone, Debug)]
pub(super) struct Server(Arc<Setup>);

/// Why a call comes to nothing.
#[derive(Debug)]
pub(super) enum Stop {
    /// The daemon did not permit it.
    Daemon(NoPermission),
    /// These tools refuse it, whatever a policy says.
    Own(Reason, String),
}

impl From<NoPermission> for Stop {
    fn from(error: NoPermission) -> Self {
        Self::Daemon(error)
    }
}

impl From<TreeError> for Stop {
    fn from(error: TreeError) -> Self {
        let outside = error.is_refusal();
        let reason = if outside { Reason::OutsideRoot } else { Reason::MalformedMessage };
        Self::Own(reason, error.to_string())
    }
}

impl Server {
    /// One with that to work with.
    pub(super) fn new(setup: Setup) -> Self {
        Self(Arc::new(setup))
    }

    /// Answers a call. Whatever refuses it has it recorded.
    async fn answer(
        &self,
        tool: &str,
        arguments: Map<String, Value>,
        gone: &CancellationToken,
    ) -> CallToolResult {
        let done = match Call::read(tool, arguments.clone()) {
            Ok(call) => self.0.act(call, gone).await,
            Err(error @ CallError::Unknown) => {
                Err(Stop::Own(Reason::ToolUnknown, error.to_string()))
            }
            Err(error) => Err(Stop::Own(Reason::MalformedMessage, error.to_string())),
        };
        match done {
            Ok(answer) => answer.into_result(),
            Err(Stop::Daemon(error)) => answer::refused(&error),
            Err(Stop::Own(reason, why)) => {
                let (method, on) = ("tools/call", "tool");
                let question = Question { method, on, id: tool.into(), arguments };
                answer::refused(&self.0.daemon.refuse(&question, reason).await.because(&why))
            }
        }
    }
}

impl Setup {
    async fn act(&self, call: Call, gone: &CancellationToken) -> Result<Answer, Stop> {
        match call {
            Call::Read(call) => self.read_file(&call, gone).await,
            Call::Write(call) => self.write_file(call, gone).await,
            Call::Edit(call) => self.edit_file(call, gone).await,
            Call::List(call) => self.list_directory(&call, gone).await,
            Call::Run(call) => shell::run(self, call, gone).await,
            Call::Fetch(call) => fetch::run(self, call, gone).await,
        }
    }

    /// Asks; does it if it may happen and is still wanted; tells how it ended.
    pub(super) async fn govern(
        &self,
        connection: Connection,
        question: &Question,
        gone: &CancellationToken,
        act: impl Future<Output = Answer>,
    ) -> Result<Answer, Stop> {
        let permission = self.daemon.ask(connection, question).await?;
        let answer = if gone.is_cancelled() {
            Answer::failed("the call was cancelled before it was decided on; nothing was done")
        } else {
            act.await
        };
        permission.conclude(answer.ended).await;
        Ok(answer)
    }
}

impl ServerHandler for Server {
    fn get_info(&self) -> ServerConfig {
        ServerConfig::new(ServerCapabilities::builder().enable_tools().build())
            .with_server_info(Implementation::new("aegis", env!("CARGO_PKG_VERSION")))
            .with_instructions(
                "Files, commands and HTTP requests that Aegis governs. /workspace is the folder to work in, /mem is what you remember, /policy (read-only) is what you are governed by. A refusal is final: do not try the same in other words; where it waits for a person, call again with exactly the same arguments.",
            )
    }

    async fn list_tools(
        &self,
        _request: Option<PaginatedRequestParams>,
        _context: RequestContext<RoleServer>,
    ) -> Result<ListToolsResult, ErrorData> {
        let mut result =
            ListToolsResult { tools: catalogue::tools(), ..ListToolsResult::default() };
        result.result_type = Some(ResultType::COMPLETE);
        Ok(result.with_ttl_ms(FRESH_FOR).with_cache_scope(CacheScope::Public))
    }

    async fn call_tool(
        &self,
        request: CallToolRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<CallToolResponse, ErrorData> {
        let arguments = request.arguments.unwrap_or_default();
        Ok(self.answer(&request.name, arguments, &context.ct).await.into())
    }
}
