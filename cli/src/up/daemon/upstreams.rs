//! The servers behind Aegis: their routes and listeners come and go with the AgentUpstreams.

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc};

use aegis_audit::{Filter, Kind, Stored};
use aegis_resources::AgentUpstreamSpec;
use aegis_sidecar::{Route, Shared};
use anyhow::Context as _;
use tokio::net::TcpListener;

use super::{Daemon, Listening};

/// The most servers, so that callers who make names up do not fill the memory.
const MAX_ROUTES: usize = 1_024;

impl Daemon {
    /// What a route shares with the others, but for its end.
    fn shared(&self) -> Arc<Shared> {
        Arc::new(Shared {
            kernel: Arc::clone(&self.shared.kernel),
            attest: Arc::clone(&self.shared.attest),
            refusals: Arc::clone(&self.shared.refusals),
            metrics: self.shared.metrics.clone(),
            tracer: self.shared.tracer.clone(),
            reachable: self.shared.reachable.clone(),
            drain: self.drain.child_token(),
        })
    }

    /// Ends the routes whose AgentUpstream is gone: their listeners close, their wrappers' sessions
    /// end.
    pub(super) fn close_removed(&self, wanted: &BTreeMap<(String, String), AgentUpstreamSpec>) {
        self.routes.lock().retain(|key, listening| {
            let stays = !listening.configured || wanted.contains_key(key);
            if !stays {
                let (namespace, name) = key;
                tracing::info!("AgentUpstream {namespace}/{name} was removed; it is closed");
                listening.route.shared.drain.cancel();
            }
            stays
        });
    }

    /// Starts to listen for an upstream that is new.
    pub(super) async fn listen(
        self: &Arc<Self>,
        namespace: &str,
        name: &str,
        spec: AgentUpstreamSpec,
    ) -> anyhow::Result<()> {
        let key = (namespace.to_owned(), name.to_owned());
        match self.routes.lock().get(&key) {
            Some(listening) if listening.configured => {
                anyhow::ensure!(
                    listening.route.spec == spec,
                    "AgentUpstream `{name}` has changed; restart `aegis up` to use the new version"
                );
                return Ok(());
            }
            // Wrappers brought a command of their own; now it is said what stands behind the name.
            Some(listening) => listening.route.shared.drain.cancel(),
            None => {}
        }
        let route = Arc::new(Route::new(self.shared(), namespace, name, spec)?);
        self.replay_pins(&route).await?;
        let mut address = None;
        if route.target.is_some() {
            let wanted = route.spec.listen.unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], 0)));
            let listener = TcpListener::bind(wanted).await.with_context(|| {
                format!("AgentUpstream `{name}`: cannot listen on {wanted}; change `spec.listen` or free the port")
            })?;
            address = Some(listener.local_addr()?);
            self.tasks.spawn(aegis_sidecar::serve(Arc::clone(&route), listener));
        }
        self.routes.lock().insert(key, Listening { route, address, configured: true });
        Ok(())
    }

    /// The route for a wrapped command: one that is configured, or one with the defaults.
    pub(in crate::up) async fn wrapped(
        self: &Arc<Self>,
        namespace: &str,
        name: &str,
        has_command: bool,
    ) -> anyhow::Result<Arc<Route>> {
        let key = (namespace.to_owned(), name.to_owned());
        if let Some(listening) = self.routes.lock().get(&key) {
            anyhow::ensure!(
                listening.route.target.is_none(),
                "AgentUpstream `{name}` is an HTTP upstream; connect to its address instead of wrapping a command"
            );
            return Ok(Arc::clone(&listening.route));
        }
        for part in [namespace, name] {
            anyhow::ensure!(
                aegis_resources::is_label(part),
                "`{part}` cannot name a server or a namespace; use lower-case letters, digits and `-`, at most 63"
            );
        }
        anyhow::ensure!(
            has_command,
            "no AgentUpstream `{name}` registers a command; register one, or give one after `--`"
        );
        anyhow::ensure!(
            self.routes.lock().len() < MAX_ROUTES,
            "there are {MAX_ROUTES} servers already; restart Aegis to forget those that are not configured"
        );
        let spec = AgentUpstreamSpec {
            protocol: Default::default(),
            url: None,
            command: None,
            listen: None,
            roots: None,
            credential: None,
            oauth_metadata: None,
            tool_pins: Default::default(),
            deny_form: Default::default(),
            allowed_origins: Vec::new(),
            a2a: Default::default(),
            limits: Default::default(),
        };
        let route = Arc::new(Route::new(self.shared(), namespace, name, spec)?);
        self.replay_pins(&route).await?;
        let listening = Listening { route, address: None, configured: false };
        // Another wrapper, or the folder, may have been first.
        Ok(Arc::clone(&self.routes.lock().entry(key).or_insert(listening).route))
    }

    async fn replay_pins(&self, route: &Route) -> anyhow::Result<()> {
        let filter = Filter {
            kind: Some(Kind::ToolPinned),
            server: Some(route.name.clone()),
            ..Filter::default()
        };
        let replay = |stored: Stored| {
            route.pins.replay(&stored.entry()?);
            anyhow::Ok(())
        };
        self.kernel.journal().reader().walk(filter, replay).await
    }
}
