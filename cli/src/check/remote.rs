//! The daemon decides, records, and opens approvals. Without its verdict nothing is judged, and nothing more is asked.

use std::path::Path;

use aegis_api::kernel::{DecisionContext, Ended};

use super::{Args, Said};
use crate::mcp::daemon::{Connection, Daemon, NoPermission, Question};

/// The daemon, and the connection to it, while there is one.
pub(super) struct Remote {
    daemon: Daemon,
    connection: Option<Connection>,
}

impl Remote {
    pub(super) fn new(args: &Args, control: &Path) -> Self {
        let socket = args.kernel_socket.clone();
        let socket = socket.unwrap_or_else(|| control.with_file_name("kernel.sock"));
        Self { daemon: Daemon::new(&socket, &args.server, args.wait), connection: None }
    }

    /// # Errors
    /// When there is no verdict: the daemon is away, slow or foreign, or does not know who asks.
    pub(super) async fn judge(&mut self, question: &Question) -> Result<Said, NoPermission> {
        let connection = match self.connection.take() {
            Some(connection) => connection,
            None => self.daemon.connect().await?,
        };
        match self.daemon.ask(connection, question).await {
            Ok(permission) => {
                let decision_id = Some(permission.id().to_owned());
                // Whether the file is then written, committed or pushed is not seen from here.
                self.connection = Some(permission.conclude(Ended::Unknown).await);
                Ok(Said { allowed: true, verdict: "allow".into(), decision_id, ..Said::default() })
            }
            Err(NoPermission::Denied(context)) => Ok(refused(*context)),
            Err(other) => Err(other),
        }
    }
}

fn refused(context: DecisionContext) -> Said {
    let DecisionContext { verdict, reason, message, decision_id, approval, index } = context;
    Said {
        allowed: false,
        verdict,
        reason,
        message,
        rules: Vec::new(),
        decision_id,
        index,
        approval,
    }
}
