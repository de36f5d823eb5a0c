//! The console's files, as they were built from `ide-bridge/web` and committed, with the headers that
//! keep everything else out of its pages: no script, style, frame or address but its own.

use axum::{
    Router,
    http::{HeaderValue, header},
    response::{IntoResponse as _, Redirect, Response},
    routing::get,
};

/// What a page may do. Trusted types leave the framework as the only one who turns text into markup.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types svelte-trusted-html";

/// A file: its name, its type, its bytes.
const FILES: [(&str, &str, &[u8]); 4] = [
    (
        "/console/",
        "text/html; charset=utf-8",
        include_bytes!("../../../../../ide-bridge/web/dist/index.html"),
    ),
    (
        "/console/console.js",
        "text/javascript; charset=utf-8",
        include_bytes!("../../../../../ide-bridge/web/dist/console.js"),
    ),
    (
        "/console/console.css",
        "text/css; charset=utf-8",
        include_bytes!("../../../../../ide-bridge/web/dist/console.css"),
    ),
    (
        "/console/aegis.svg",
        "image/svg+xml",
        include_bytes!("../../../../../ide-bridge/web/dist/aegis.svg"),
    ),
];

/// They hold nothing of this machine, so anybody on it may have them.
pub(super) fn router() -> Router {
    let slash = get(|| async { Redirect::permanent("/console/") });
    FILES.iter().fold(Router::new().route("/console", slash), |router, &(path, kind, bytes)| {
        router.route(path, get(move || async move { file(kind, bytes) }))
    })
}

fn file(kind: &'static str, bytes: &'static [u8]) -> Response {
    let headers = [
        (header::CONTENT_TYPE, kind),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CACHE_CONTROL, "no-cache"),
    ];
    let mut response = (headers, bytes).into_response();
    for (name, value) in [
        ("cross-origin-opener-policy", "same-origin"),
        ("cross-origin-resource-policy", "same-origin"),
    ] {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_has_no_scripts_or_styles_within() {
        let (_, _, page) = FILES[0];
        let page = std::str::from_utf8(page).unwrap();
        assert!(page.contains("src=\"./console.js\""), "{page}");
        for inner in ["<style", "style=\"", "onload=", "javascript:", "http:", "https:"] {
            assert!(!page.contains(inner), "{inner}: {page}");
        }
        assert!(page.matches("<script").count() == 1 && page.contains("></script>"), "{page}");
        let all: usize = FILES.iter().map(|(_, _, bytes)| bytes.len()).sum();
        assert!(all < 300_000, "the console has {all} bytes");
    }
}
