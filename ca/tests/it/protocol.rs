//! The Workload Endpoint's own rules, with requests that no honest client sends.

use std::os::unix::fs::PermissionsExt as _;

use crate::fixture::{registration, soon, start, this_process};
use aegis_ca::{ListenError, WorkloadSocket};
use tokio::net::UnixListener;
use tonic::{
    Code, Request, Status,
    codegen::http::uri::PathAndQuery,
    metadata::MetadataValue,
    transport::{Channel, Endpoint},
};

async fn channel(endpoint: &str) -> Channel {
    soon(Endpoint::try_from(endpoint.to_owned()).unwrap().connect()).await.unwrap()
}

/// Calls a method with an empty message and the given values of the header.
async fn call(
    channel: &Channel,
    method: &'static str,
    header: &[&'static str],
) -> Result<(), Status> {
    let mut grpc = tonic::client::Grpc::new(channel.clone());
    grpc.ready().await.map_err(|error| Status::unknown(error.to_string()))?;
    let mut request = Request::new(());
    for value in header {
        request.metadata_mut().append("workload.spiffe.io", MetadataValue::from_static(value));
    }
    let codec = tonic_prost::ProstCodec::<(), ()>::default();
    let answer =
        soon(grpc.server_streaming(request, PathAndQuery::from_static(method), codec)).await?;
    soon(answer.into_inner().message()).await.map(|_| ())
}

#[tokio::test]
async fn a_request_without_the_header_is_refused() {
    let ca = start().await;
    ca.manager.register(vec![registration(this_process())]).unwrap();
    let channel = channel(&ca.endpoint).await;
    for method in [
        "/SpiffeWorkloadAPI/FetchX509SVID",
        "/SpiffeWorkloadAPI/FetchX509Bundles",
        "/SpiffeWorkloadAPI/FetchJWTSVID",
        "/SpiffeWorkloadAPI/FetchJWTBundles",
        "/SpiffeWorkloadAPI/ValidateJWTSVID",
    ] {
        for header in [&[][..], &["false"], &["TRUE"], &["true", "true"]] {
            let status = call(&channel, method, header).await.expect_err(method);
            assert_eq!(status.code(), Code::InvalidArgument, "{method} {header:?}: {status}");
        }
    }
    assert!(ca.log.events.lock().is_empty());
    call(&channel, "/SpiffeWorkloadAPI/FetchX509SVID", &["true"]).await.unwrap();
    let unknown = call(&channel, "/SpiffeWorkloadAPI/FetchWITSVID", &["true"]).await.unwrap_err();
    assert_eq!(unknown.code(), Code::Unimplemented);
    let no_audience =
        call(&channel, "/SpiffeWorkloadAPI/FetchJWTSVID", &["true"]).await.unwrap_err();
    assert_eq!(no_audience.code(), Code::InvalidArgument);
}

#[tokio::test]
async fn before_the_registrations_are_loaded_the_answer_is_unavailable() {
    let ca = start().await;
    let channel = channel(&ca.endpoint).await;
    let status = call(&channel, "/SpiffeWorkloadAPI/FetchX509SVID", &["true"]).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    ca.manager.register(vec![]).unwrap();
    let status = call(&channel, "/SpiffeWorkloadAPI/FetchX509SVID", &["true"]).await.unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied);
}

#[tokio::test]
async fn a_process_cannot_hold_all_streams_nor_ask_without_end() {
    let ca = start().await;
    ca.manager.register(vec![registration(this_process())]).unwrap();
    let channel = channel(&ca.endpoint).await;
    let mut open = Vec::new();
    let exhausted = loop {
        let mut grpc = tonic::client::Grpc::new(channel.clone());
        grpc.ready().await.unwrap();
        let mut request = Request::new(());
        request.metadata_mut().insert("workload.spiffe.io", MetadataValue::from_static("true"));
        let codec = tonic_prost::ProstCodec::<(), ()>::default();
        let path = PathAndQuery::from_static("/SpiffeWorkloadAPI/FetchX509Bundles");
        match soon(grpc.server_streaming(request, path, codec)).await {
            Ok(stream) => open.push(stream),
            Err(status) => break status,
        }
    };
    assert_eq!((exhausted.code(), open.len()), (Code::ResourceExhausted, 16));
    drop(open);
    let mut codes = Vec::new();
    for _ in 0..10_000 {
        let outcome = call(&channel, "/SpiffeWorkloadAPI/FetchJWTSVID", &["true"]).await;
        codes.push(outcome.unwrap_err().code());
        if codes.last() == Some(&Code::ResourceExhausted) {
            break;
        }
    }
    assert_eq!(codes.last(), Some(&Code::ResourceExhausted));
}

#[tokio::test]
async fn the_socket_is_open_to_all_and_its_directory_to_none() {
    let ca = start().await;
    let path = ca.endpoint.strip_prefix("unix://").unwrap();
    assert_eq!(std::fs::metadata(path).unwrap().permissions().mode() & 0o777, 0o666);
    assert!(matches!(WorkloadSocket::bind(path).await, Err(ListenError::InUse(_))));

    let exposed = ca.directory.path().join("exposed");
    std::fs::create_dir(&exposed).unwrap();
    std::fs::set_permissions(&exposed, std::fs::Permissions::from_mode(0o777)).unwrap();
    let error = WorkloadSocket::bind(exposed.join("s")).await.unwrap_err();
    assert!(error.to_string().contains("chmod go-w"), "{error}");

    let file = ca.directory.path().join("file");
    std::fs::write(&file, "precious").unwrap();
    assert!(matches!(WorkloadSocket::bind(&file).await, Err(ListenError::NotASocket(_))));
    assert_eq!(std::fs::read(&file).unwrap(), b"precious");

    let stale = ca.directory.path().join("stale");
    drop(UnixListener::bind(&stale).unwrap());
    assert!(WorkloadSocket::bind(&stale).await.is_ok(), "a dead process' socket is replaced");
}
