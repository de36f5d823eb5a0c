//! Resources from folders and files, and the policies among them.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use aegis_policy::{Compiler, Host, Limits, Opa, Policy, PolicyEngine, PolicyId};
use aegis_resources::{LoadError, Loaded, Place, Resources, load_folder, parse_documents};
use anyhow::Context as _;

use crate::names::Tools;

/// Reads every resource of these folders and files. What is broken never hides the rest.
///
/// # Errors
/// When one of them cannot be read at all.
pub(crate) fn read(paths: &[PathBuf]) -> anyhow::Result<(Resources, Vec<LoadError>)> {
    let mut resources = Resources::default();
    let mut errors = Vec::new();
    for path in paths {
        if path.is_dir() {
            let (found, broken) = load_folder(path)?;
            merge(&mut resources, found);
            errors.extend(broken);
        } else {
            read_file(path, &mut resources, &mut errors)?;
        }
    }
    Ok((resources, errors))
}

fn read_file(
    path: &Path,
    resources: &mut Resources,
    errors: &mut Vec<LoadError>,
) -> anyhow::Result<()> {
    let text =
        fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    for document in parse_documents(&path.display().to_string(), &text) {
        match document {
            Ok(loaded) => resources.push(loaded),
            Err(error) => errors.push(error),
        }
    }
    Ok(())
}

fn merge(into: &mut Resources, from: Resources) {
    let Resources {
        policies,
        cluster_policies,
        identities,
        thresholds,
        cluster_thresholds,
        upstreams,
    } = from;
    policies.into_iter().for_each(|r| into.push(Loaded::Policy(r)));
    cluster_policies.into_iter().for_each(|r| into.push(Loaded::ClusterPolicy(r)));
    identities.into_iter().for_each(|r| into.push(Loaded::Identity(r)));
    thresholds.into_iter().for_each(|r| into.push(Loaded::Threshold(r)));
    cluster_thresholds.into_iter().for_each(|r| into.push(Loaded::ClusterThreshold(r)));
    upstreams.into_iter().for_each(|r| into.push(Loaded::Upstream(r)));
}

/// The policies among resources.
pub(crate) fn policies(resources: &Resources) -> Vec<Policy> {
    let namespaced = resources.policies.iter().map(|resource| Policy {
        id: PolicyId::namespaced(resource.namespace(), &resource.metadata.name),
        spec: resource.spec.clone(),
    });
    let cluster = resources.cluster_policies.iter().map(|resource| Policy {
        id: PolicyId::cluster(&resource.metadata.name),
        spec: resource.spec.clone(),
    });
    namespaced.chain(cluster).collect()
}

/// Where the policies among resources stand.
pub(crate) fn places(resources: &Resources) -> BTreeMap<PolicyId, Place> {
    let namespaced = resources.policies.iter().map(|resource| {
        let id = PolicyId::namespaced(resource.namespace(), &resource.metadata.name);
        (id, resource.place.clone())
    });
    let cluster = resources
        .cluster_policies
        .iter()
        .map(|resource| (PolicyId::cluster(&resource.metadata.name), resource.place.clone()));
    namespaced.chain(cluster).collect()
}

/// The servers among resources. Of their tools, those that configuration pins are known.
pub(crate) fn servers(resources: &Resources) -> BTreeMap<String, Tools> {
    let mut servers: BTreeMap<String, Tools> = BTreeMap::new();
    for upstream in &resources.upstreams {
        let known = servers.entry(upstream.metadata.name.clone()).or_default();
        known.names.extend(upstream.spec.tool_pins.digests.keys().cloned());
    }
    servers
}

/// A compiler on the `opa` of this machine.
///
/// # Errors
/// When there is none.
pub(crate) fn compiler() -> anyhow::Result<Compiler> {
    Ok(Compiler::new(Opa::locate()?, None))
}

/// An engine factory: engines of one host, each without policies.
///
/// # Errors
/// When the machine has no support for WebAssembly.
pub(crate) fn engines() -> anyhow::Result<impl Fn() -> PolicyEngine> {
    // A verdict must not depend on how busy the machine is that tests it.
    let limits = Limits { budget: std::time::Duration::from_secs(10), ..Limits::default() };
    let host = Arc::new(Host::for_many_modules(limits)?);
    Ok(move || PolicyEngine::new(Arc::clone(&host)))
}
