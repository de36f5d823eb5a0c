//! The operations of the protocol (specification §3.1) and what they are called in each version.

use aegis_core::action::ActionKind;

use super::Version;

/// How an operation is spelled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Binding {
    /// JSON-RPC 2.0 over HTTP (§9).
    JsonRpc,
    /// HTTP+JSON (§11).
    HttpJson,
}

/// What a client asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Operation {
    /// §3.1.1.
    SendMessage,
    /// §3.1.2.
    SendStreamingMessage,
    /// §3.1.3.
    GetTask,
    /// §3.1.4.
    ListTasks,
    /// §3.1.5.
    CancelTask,
    /// §3.1.6.
    SubscribeToTask,
    /// §3.1.7.
    CreatePushConfig,
    /// §3.1.8.
    GetPushConfig,
    /// §3.1.9.
    ListPushConfigs,
    /// §3.1.10.
    DeletePushConfig,
    /// §3.1.11.
    GetExtendedAgentCard,
    /// The card that everybody may see (§8.2).
    GetAgentCard,
}

impl Operation {
    /// Every operation with its JSON-RPC methods in 1.0 (§5.3) and 0.3 (0.3 §3.5.6).
    const NAMES: [(Self, &'static str, Option<&'static str>); 11] = [
        (Self::SendMessage, "SendMessage", Some("message/send")),
        (Self::SendStreamingMessage, "SendStreamingMessage", Some("message/stream")),
        (Self::GetTask, "GetTask", Some("tasks/get")),
        (Self::ListTasks, "ListTasks", None),
        (Self::CancelTask, "CancelTask", Some("tasks/cancel")),
        (Self::SubscribeToTask, "SubscribeToTask", Some("tasks/resubscribe")),
        (
            Self::CreatePushConfig,
            "CreateTaskPushNotificationConfig",
            Some("tasks/pushNotificationConfig/set"),
        ),
        (
            Self::GetPushConfig,
            "GetTaskPushNotificationConfig",
            Some("tasks/pushNotificationConfig/get"),
        ),
        (
            Self::ListPushConfigs,
            "ListTaskPushNotificationConfigs",
            Some("tasks/pushNotificationConfig/list"),
        ),
        (
            Self::DeletePushConfig,
            "DeleteTaskPushNotificationConfig",
            Some("tasks/pushNotificationConfig/delete"),
        ),
        (
            Self::GetExtendedAgentCard,
            "GetExtendedAgentCard",
            Some("agent/getAuthenticatedExtendedCard"),
        ),
    ];

    /// The operation that a JSON-RPC method is in a version.
    #[must_use]
    pub fn of_method(method: &str, version: Version) -> Option<Self> {
        let named = Self::NAMES.iter().find(|(_, current, legacy)| match version {
            Version::V1_0 => *current == method,
            Version::V0_3 => *legacy == Some(method),
        });
        named.map(|(operation, ..)| *operation)
    }

    /// The name by which it is judged and recorded: that of 1.0.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        let named = Self::NAMES.iter().find(|(operation, ..)| *operation == self);
        named.map_or("GetAgentCard", |(_, name, _)| name)
    }

    /// What kind of action it is. What only concerns tasks that are the caller's own prepares calls;
    /// a message, a webhook and the card that not everybody may see each need a policy.
    #[must_use]
    pub const fn kind(self) -> ActionKind {
        match self {
            Self::SendMessage | Self::SendStreamingMessage => ActionKind::AgentMessage,
            Self::CreatePushConfig => ActionKind::Subscription,
            Self::GetExtendedAgentCard => ActionKind::ResourceRead,
            Self::ListTasks => ActionKind::List,
            Self::GetAgentCard => ActionKind::Session,
            Self::GetTask
            | Self::CancelTask
            | Self::SubscribeToTask
            | Self::GetPushConfig
            | Self::ListPushConfigs
            | Self::DeletePushConfig => ActionKind::Task,
        }
    }

    /// Whether it is answered by a stream.
    #[must_use]
    pub const fn streams(self) -> bool {
        matches!(self, Self::SendStreamingMessage | Self::SubscribeToTask)
    }

    /// Whether its answer is an agent's card, which is passed on as it is: a card may be signed.
    #[must_use]
    pub const fn is_card(self) -> bool {
        matches!(self, Self::GetAgentCard | Self::GetExtendedAgentCard)
    }
}
