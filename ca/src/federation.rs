//! The bundle endpoint (SPIFFE Federation §5): the trust bundle for everybody who asks. It is
//! public by design; whoever puts it on a network adds the HTTPS that the profile asks for.

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};

use crate::IdentityManager;

/// Serves the bundle as a JWKS document at `/`.
pub fn router(manager: IdentityManager) -> Router {
    Router::new().route("/", get(bundle)).with_state(manager)
}

async fn bundle(State(manager): State<IdentityManager>) -> Response {
    let bundle = manager.bundle();
    match bundle.to_jwks() {
        Ok(document) => {
            let fresh = format!("max-age={}", bundle.refresh_hint().as_secs());
            let kind = "application/json".to_owned();
            ([(header::CONTENT_TYPE, kind), (header::CACHE_CONTROL, fresh)], document)
                .into_response()
        }
        Err(error) => {
            tracing::error!(%error, "the bundle cannot be written");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}
