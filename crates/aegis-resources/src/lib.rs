//! The resources of `aegis.dev/v1alpha1`: the same YAML for `kubectl apply` and for the folder that
//! `aegis up` reads.
//!
//! Strict: an unknown kind, field or value is an error with its file and line; nothing is ignored.

pub mod approval;
#[cfg(feature = "kube")]
pub mod crd;
pub mod folder;
pub mod identity;
#[cfg(feature = "kube")]
pub mod kinds;
pub mod nearest;
pub mod place;
pub mod resource;
pub mod status;
pub mod upstream;

pub use folder::{LoadError, is_label, load_folder, parse_documents};
pub use identity::AgentIdentitySpec;
pub use nearest::{did_you_mean, nearest};
pub use place::Place;
pub use resource::{API_VERSION, Loaded, Metadata, Resource, Resources};
pub use upstream::AgentUpstreamSpec;
