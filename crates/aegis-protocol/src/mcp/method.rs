//! The closed lists of methods. A method that is not here does not exist for Aegis.

use aegis_core::action::ActionKind;

use super::Era;

macro_rules! methods {
    ($(#[doc = $about:literal])* $name:ident { $($variant:ident $text:literal)* }) => {
        $(#[doc = $about])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum $name {
            $(#[doc = concat!("`", $text, "`")] $variant,)*
        }

        impl $name {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The name on the wire.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text,)* }
            }

            /// The method of this name.
            #[must_use]
            pub fn from_name(name: &str) -> Option<Self> {
                match name {
                    $($text => Some(Self::$variant),)*
                    _ => None,
                }
            }
        }
    };
}

methods! {
    /// What a client sends: requests and notifications of both eras.
    ClientMethod {
        Initialize "initialize"
        Ping "ping"
        Discover "server/discover"
        SetLevel "logging/setLevel"
        ToolsList "tools/list"
        ToolsCall "tools/call"
        PromptsList "prompts/list"
        PromptsGet "prompts/get"
        ResourcesList "resources/list"
        ResourceTemplatesList "resources/templates/list"
        ResourcesRead "resources/read"
        ResourcesSubscribe "resources/subscribe"
        ResourcesUnsubscribe "resources/unsubscribe"
        Complete "completion/complete"
        Listen "subscriptions/listen"
        TasksGet "tasks/get"
        TasksList "tasks/list"
        TasksResult "tasks/result"
        TasksUpdate "tasks/update"
        TasksCancel "tasks/cancel"
        Initialized "notifications/initialized"
        Cancelled "notifications/cancelled"
        Progress "notifications/progress"
        RootsListChanged "notifications/roots/list_changed"
        TaskStatus "notifications/tasks/status"
    }
}

methods! {
    /// What a server sends beside responses. In the modern era the first three are embedded in
    /// results (basic/patterns/mrtr); `tasks/*` are those of 2025-11-25, where clients run tasks too.
    ServerMethod {
        CreateMessage "sampling/createMessage"
        Elicit "elicitation/create"
        RootsList "roots/list"
        Ping "ping"
        TasksGet "tasks/get"
        TasksList "tasks/list"
        TasksResult "tasks/result"
        TasksCancel "tasks/cancel"
        Cancelled "notifications/cancelled"
        Progress "notifications/progress"
        LogMessage "notifications/message"
        ResourceUpdated "notifications/resources/updated"
        ResourcesListChanged "notifications/resources/list_changed"
        ToolsListChanged "notifications/tools/list_changed"
        PromptsListChanged "notifications/prompts/list_changed"
        ElicitationComplete "notifications/elicitation/complete"
        SubscriptionAcknowledged "notifications/subscriptions/acknowledged"
        TaskStatus "notifications/tasks/status"
        Task "notifications/tasks"
    }
}

/// The lists whose items are filtered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ListKind {
    /// `tools/list`
    Tools,
    /// `prompts/list`
    Prompts,
    /// `resources/list`
    Resources,
    /// `resources/templates/list`
    ResourceTemplates,
}

impl ListKind {
    /// The member of the result that holds the items.
    #[must_use]
    pub const fn member(self) -> &'static str {
        match self {
            Self::Tools => "tools",
            Self::Prompts => "prompts",
            Self::Resources => "resources",
            Self::ResourceTemplates => "resourceTemplates",
        }
    }

    /// The member of an item that names it.
    #[must_use]
    pub const fn key(self) -> &'static str {
        match self {
            Self::Tools | Self::Prompts => "name",
            Self::Resources => "uri",
            Self::ResourceTemplates => "uriTemplate",
        }
    }
}

impl ClientMethod {
    /// Whether it is a notification: it has no id and gets no answer.
    #[must_use]
    pub const fn is_notification(self) -> bool {
        use ClientMethod as M;
        matches!(
            self,
            M::Initialized | M::Cancelled | M::Progress | M::RootsListChanged | M::TaskStatus
        )
    }

    /// Whether `era` has this method. 2026-07-28 removed and added some (changelog).
    #[must_use]
    pub const fn exists_in(self, era: Era) -> bool {
        use ClientMethod as M;
        let (legacy, modern) = match self {
            M::Initialize
            | M::Ping
            | M::SetLevel
            | M::ResourcesSubscribe
            | M::ResourcesUnsubscribe
            | M::TasksList
            | M::TasksResult
            | M::Initialized
            | M::Progress
            | M::RootsListChanged
            | M::TaskStatus => (true, false),
            M::Discover | M::Listen | M::TasksUpdate => (false, true),
            M::ToolsList
            | M::ToolsCall
            | M::PromptsList
            | M::PromptsGet
            | M::ResourcesList
            | M::ResourceTemplatesList
            | M::ResourcesRead
            | M::Complete
            | M::TasksGet
            | M::TasksCancel
            | M::Cancelled => (true, true),
        };
        if era.is_modern() { modern } else { legacy }
    }

    /// The kind of action it is.
    #[must_use]
    pub const fn kind(self) -> ActionKind {
        use ClientMethod as M;
        match self {
            M::ToolsCall => ActionKind::ToolCall,
            M::ResourcesRead => ActionKind::ResourceRead,
            M::ResourcesSubscribe | M::ResourcesUnsubscribe | M::Listen => ActionKind::Subscription,
            M::PromptsGet => ActionKind::PromptGet,
            M::Complete => ActionKind::Completion,
            M::ToolsList | M::PromptsList | M::ResourcesList | M::ResourceTemplatesList => {
                ActionKind::List
            }
            M::TasksGet
            | M::TasksList
            | M::TasksResult
            | M::TasksUpdate
            | M::TasksCancel
            | M::TaskStatus => ActionKind::Task,
            M::Initialize
            | M::Ping
            | M::Discover
            | M::SetLevel
            | M::Initialized
            | M::Cancelled
            | M::Progress
            | M::RootsListChanged => ActionKind::Session,
        }
    }

    /// The list it asks for, if it asks for one.
    #[must_use]
    pub const fn list(self) -> Option<ListKind> {
        match self {
            Self::ToolsList => Some(ListKind::Tools),
            Self::PromptsList => Some(ListKind::Prompts),
            Self::ResourcesList => Some(ListKind::Resources),
            Self::ResourceTemplatesList => Some(ListKind::ResourceTemplates),
            _ => None,
        }
    }

    /// The member of `params` that `Mcp-Name` mirrors (streamable-http, "Standard Request Headers";
    /// SEP-2663 for tasks).
    #[must_use]
    pub const fn named_by(self) -> Option<&'static str> {
        match self {
            Self::ToolsCall | Self::PromptsGet => Some("name"),
            Self::ResourcesRead => Some("uri"),
            Self::TasksGet | Self::TasksUpdate | Self::TasksCancel => Some("taskId"),
            _ => None,
        }
    }

    /// Whether a server may answer it with `input_required` (basic/patterns/mrtr, "Supported
    /// Requests").
    #[must_use]
    pub const fn may_require_input(self) -> bool {
        matches!(self, Self::ToolsCall | Self::PromptsGet | Self::ResourcesRead)
    }
}

impl ServerMethod {
    /// Whether it is a notification.
    #[must_use]
    pub fn is_notification(self) -> bool {
        self.as_str().starts_with("notifications/")
    }

    /// Whether it may be embedded in an `input_required` result.
    #[must_use]
    pub const fn is_input_request(self) -> bool {
        matches!(self, Self::CreateMessage | Self::Elicit | Self::RootsList)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip_and_unknown_names_are_none() {
        for method in ClientMethod::ALL {
            assert_eq!(ClientMethod::from_name(method.as_str()), Some(*method));
            assert_eq!(method.is_notification(), method.as_str().starts_with("notifications/"));
        }
        for method in ServerMethod::ALL {
            assert_eq!(ServerMethod::from_name(method.as_str()), Some(*method));
        }
        for name in ["tools/Call", "tools/call ", "", "rpc.discover", "ui/open"] {
            assert_eq!(ClientMethod::from_name(name), None);
        }
    }
}
