//! Which policies can speak about an action.
//!
//! Modules have no rule index, so the host picks: cost follows the policies that match, not those
//! installed. Each policy is filed under the most telling of its dimensions (tool, server, agent,
//! method); a look-up takes those filed under the action's own names and those whose globs match
//! them, and checks every other dimension. Answers are remembered in a bounded table, without the
//! resource, whose values are too many.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use aegis_core::{
    AgentId,
    action::Protocol,
    input::Input,
    policy::{PolicySpec, Scope},
};
use globset::{GlobBuilder, GlobMatcher, GlobSet, GlobSetBuilder};

use crate::{predicate, translate::is_glob};

/// The most answers an evaluator remembers.
const MAX_MEMO: usize = 4096;
/// The longest key that is remembered.
const MAX_KEY: usize = 1024;
/// Globs are matched in automata of at most this many.
const GLOBS_PER_SET: usize = 256;

/// A list of globs; empty matches all.
#[derive(Debug, Default)]
struct Globs {
    plain: HashSet<String>,
    globs: Vec<GlobMatcher>,
}

impl Globs {
    fn new(list: &[String], path: bool) -> Result<Self, String> {
        let mut out = Self::default();
        for text in list {
            if is_glob(text) {
                out.globs.push(predicate::glob(text, path)?);
            } else {
                out.plain.insert(text.clone());
            }
        }
        Ok(out)
    }

    fn is_empty(&self) -> bool {
        self.plain.is_empty() && self.globs.is_empty()
    }

    fn holds(&self, text: &str) -> bool {
        self.plain.contains(text) || self.globs.iter().any(|glob| glob.is_match(text))
    }

    fn admits(&self, text: Option<&str>) -> bool {
        self.is_empty() || text.is_some_and(|text| self.holds(text))
    }
}

/// All dimensions of one policy.
#[derive(Debug)]
struct Matcher {
    agents: Globs,
    namespaces: Globs,
    scopes: Vec<Scope>,
    protocols: Vec<Protocol>,
    servers: Globs,
    methods: Globs,
    tools: Globs,
    paths: Globs,
}

impl Matcher {
    fn new(spec: &PolicySpec) -> Result<Self, String> {
        Ok(Self {
            agents: Globs::new(&spec.selector.agents, false)?,
            namespaces: Globs::new(&spec.selector.namespaces, false)?,
            scopes: spec.scopes.clone(),
            protocols: spec.matches.protocols.clone(),
            servers: Globs::new(&spec.matches.servers, false)?,
            methods: Globs::new(&spec.matches.methods, false)?,
            tools: Globs::new(&spec.matches.tools, false)?,
            paths: Globs::new(&spec.matches.paths, true)?,
        })
    }

    /// Everything but the server's side: agent, scope, protocol and server.
    fn reaches(&self, input: &Input<'_>) -> bool {
        let principal = &input.principal;
        let agent = self.agents.is_empty()
            || self.agents.holds(principal.name)
            || self.agents.holds(principal.id.as_str());
        agent
            && self.namespaces.admits(Some(principal.namespace))
            && (self.scopes.is_empty() || self.scopes.contains(&input.context.scope))
            && (self.protocols.is_empty() || self.protocols.contains(&input.action.protocol))
            && self.servers.admits(Some(input.action.server))
    }

    fn matches(&self, input: &Input<'_>) -> bool {
        self.reaches(input)
            && self.methods.admits(Some(input.action.method))
            && self.tools.admits(input.action.tool)
    }
}

/// Policies filed under the names of one dimension.
#[derive(Debug, Default)]
struct Dimension {
    plain: HashMap<String, Vec<u32>>,
    listed: Vec<(String, u32)>,
    globs: Vec<(GlobSet, Vec<u32>)>,
}

impl Dimension {
    fn file(&mut self, globs: &[String], policy: u32) {
        for text in globs {
            if is_glob(text) {
                self.listed.push((text.clone(), policy));
            } else {
                self.plain.entry(text.clone()).or_default().push(policy);
            }
        }
    }

    /// Builds the automata.
    fn finish(&mut self) -> Result<(), String> {
        for chunk in self.listed.chunks(GLOBS_PER_SET) {
            let mut set = GlobSetBuilder::new();
            for (text, _) in chunk {
                let glob = GlobBuilder::new(text)
                    .backslash_escape(true)
                    .empty_alternates(true)
                    .build()
                    .map_err(|error| error.to_string())?;
                set.add(glob);
            }
            let set = set.build().map_err(|error| error.to_string())?;
            self.globs.push((set, chunk.iter().map(|(_, policy)| *policy).collect()));
        }
        self.listed = Vec::new();
        Ok(())
    }

    fn find(&self, text: &str, found: &mut Vec<u32>) {
        found.extend(self.plain.get(text).into_iter().flatten());
        for (set, policies) in &self.globs {
            found.extend(set.matches(text).into_iter().filter_map(|i| policies.get(i)));
        }
    }
}

/// The policies of one namespace, or of the cluster.
#[derive(Debug, Default)]
struct Partition {
    tools: Dimension,
    servers: Dimension,
    agents: Dimension,
    methods: Dimension,
    rest: Vec<u32>,
}

/// The index over all policies.
#[derive(Debug, Default)]
pub(crate) struct Index {
    cluster: Partition,
    namespaces: HashMap<String, Partition>,
    matchers: Vec<Matcher>,
}

impl Index {
    /// Files policies: each one's namespace (`None`: the whole cluster) and specification.
    pub(crate) fn new<'a>(
        policies: impl Iterator<Item = (Option<&'a str>, &'a PolicySpec)>,
    ) -> Result<Self, String> {
        let mut index = Self::default();
        for (namespace, spec) in policies {
            let i = u32::try_from(index.matchers.len()).map_err(|error| error.to_string())?;
            index.matchers.push(Matcher::new(spec)?);
            let partition = match namespace {
                None => &mut index.cluster,
                Some(namespace) => index.namespaces.entry(namespace.to_owned()).or_default(),
            };
            let dimensions = [
                (&spec.matches.tools, &mut partition.tools),
                (&spec.matches.servers, &mut partition.servers),
                (&spec.selector.agents, &mut partition.agents),
                (&spec.matches.methods, &mut partition.methods),
            ];
            // Plain names tell more than globs.
            let plain = |list: &&Vec<String>| !list.is_empty() && !list.iter().any(|t| is_glob(t));
            let mut best = None;
            for (list, dimension) in dimensions {
                let better = match &best {
                    None => !list.is_empty(),
                    Some((chosen, _)) => plain(&list) && !plain(chosen),
                };
                if better {
                    best = Some((list, dimension));
                }
            }
            match best {
                Some((list, dimension)) => dimension.file(list, i),
                None => partition.rest.push(i),
            }
        }
        let Self { cluster, namespaces, .. } = &mut index;
        for partition in namespaces.values_mut().chain([cluster]) {
            partition.tools.finish()?;
            partition.servers.finish()?;
            partition.agents.finish()?;
            partition.methods.finish()?;
        }
        Ok(index)
    }

    /// The policies that match, in order, whatever the resource.
    fn find(&self, input: &Input<'_>, server_namespace: Option<&str>) -> Vec<u32> {
        let mut found = Vec::new();
        let own = self.namespaces.get(input.principal.namespace);
        let theirs = server_namespace
            .filter(|namespace| *namespace != input.principal.namespace)
            .and_then(|namespace| self.namespaces.get(namespace));
        for partition in [Some(&self.cluster), own, theirs].into_iter().flatten() {
            if let Some(tool) = input.action.tool {
                partition.tools.find(tool, &mut found);
            }
            partition.servers.find(input.action.server, &mut found);
            partition.agents.find(input.principal.name, &mut found);
            partition.agents.find(input.principal.id.as_str(), &mut found);
            partition.methods.find(input.action.method, &mut found);
            found.extend(&partition.rest);
        }
        found.sort_unstable();
        found.dedup();
        found.retain(|i| self.matcher(*i).is_some_and(|matcher| matcher.matches(input)));
        found
    }

    fn matcher(&self, policy: u32) -> Option<&Matcher> {
        usize::try_from(policy).ok().and_then(|i| self.matchers.get(i))
    }

    /// Whether the policy can speak about anything that this agent does.
    pub(crate) fn concerns(&self, policy: u32, agent: &AgentId) -> bool {
        self.matcher(policy).is_some_and(|matcher| {
            let agents = &matcher.agents;
            let named = agents.holds(agent.name()) || agents.holds(agent.as_str());
            (agents.is_empty() || named) && matcher.namespaces.admits(agent.namespace())
        })
    }

    /// Whether the policy's paths admit the action's resource.
    pub(crate) fn admits_resource(&self, policy: u32, resource: Option<&str>) -> bool {
        self.matcher(policy).is_some_and(|matcher| matcher.paths.admits(resource))
    }

    /// The policies that can speak about some action of this agent on this server.
    pub(crate) fn reaching(&self, input: &Input<'_>, server_namespace: Option<&str>) -> Vec<u32> {
        let here = |namespace: &str| {
            namespace == input.principal.namespace || Some(namespace) == server_namespace
        };
        let partitions = self.namespaces.iter().filter(|(namespace, _)| here(namespace));
        let partitions = partitions.map(|(_, partition)| partition).chain([&self.cluster]);
        let mut found: Vec<u32> = partitions.flat_map(Partition::all).collect();
        found.sort_unstable();
        found.dedup();
        found.retain(|i| self.matcher(*i).is_some_and(|matcher| matcher.reaches(input)));
        found
    }
}

impl Partition {
    fn all(&self) -> Vec<u32> {
        let dimensions = [&self.tools, &self.servers, &self.agents, &self.methods];
        let filed = dimensions.into_iter().flat_map(|dimension| {
            let globs = dimension.globs.iter().flat_map(|(_, policies)| policies.iter());
            dimension.plain.values().flatten().chain(globs)
        });
        filed.chain(&self.rest).copied().collect()
    }
}

/// An evaluator's memory of answers.
#[derive(Debug, Default)]
pub(crate) struct Memo {
    known: HashMap<Box<[u8]>, Arc<[u32]>>,
    key: Vec<u8>,
}

impl Memo {
    /// The policies that match, whatever the resource.
    pub(crate) fn select(
        &mut self,
        index: &Index,
        input: &Input<'_>,
        server_namespace: Option<&str>,
    ) -> Arc<[u32]> {
        self.key.clear();
        let action = &input.action;
        self.key.extend([input.context.scope as u8, action.protocol as u8]);
        let parts = [
            Some(input.principal.id.as_str()),
            Some(action.server),
            Some(action.method),
            action.tool,
            server_namespace,
        ];
        for part in parts {
            // With its length, so that no two tuples share a key.
            let len =
                part.map_or(u32::MAX, |part| u32::try_from(part.len()).unwrap_or(u32::MAX - 1));
            self.key.extend(len.to_le_bytes());
            self.key.extend(part.unwrap_or_default().as_bytes());
        }
        if let Some(known) = self.known.get(self.key.as_slice()) {
            return Arc::clone(known);
        }
        let found: Arc<[u32]> = index.find(input, server_namespace).into();
        if self.key.len() <= MAX_KEY {
            if self.known.len() >= MAX_MEMO {
                self.known.clear();
            }
            self.known.insert(self.key.as_slice().into(), Arc::clone(&found));
        }
        found
    }
}
