//! Requests go where they were judged to go, and nowhere private.

use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
};

use super::*;

fn call(value: Value) -> HttpRequest {
    serde_json::from_value(value).unwrap()
}

fn target(url: &str) -> Result<Target, RequestError> {
    Target::new(&call(json!({ "url": url })))
}

#[test]
fn an_address_has_one_spelling() {
    let whole = target("https://x.example:8443/a?b=c").unwrap();
    assert_eq!((whole.tls, whole.host.as_str(), whole.port), (true, "x.example", 8443));
    assert_eq!(whole.request.uri(), "/a?b=c");
    assert_eq!(whole.request.headers()["host"], "x.example:8443");
    assert_eq!(target("http://[::1]/").unwrap().host, "::1");
    assert_eq!(target("http://x.example").unwrap().url, "http://x.example/");
    assert_eq!(target("https://x.example:80/").unwrap().port, 80);
    assert_eq!(target("http://127.0.0.1:8080/").unwrap().host, "127.0.0.1");
    for url in [
        "ftp://x.example/",
        "file:///etc/passwd",
        "http://user:word@x.example/",
        "http://x.example/#part",
        "http:///etc",
        "http://x.example/a/../b",
        "http://X.example/",
        "x.example",
        "http://x.example/ y",
        "http://x.example/\r\nhost: y",
        "http://x.example./",
        "http://x.example:/",
        "http://x.example:80/",
        "https://x.example:443/",
        "http://x.example?a=b",
        "http://2130706433/",
        "http://0x7f.1/",
        "http://127.1/",
        "http://0177.0.0.1/",
        "",
    ] {
        assert!(target(url).is_err(), "{url:?}");
    }
}

#[test]
fn headers_do_not_speak_for_the_connection() {
    for (name, value) in [
        ("Host", "y.example"),
        ("content-length", "1"),
        ("Transfer-Encoding", "chunked"),
        ("connection", "upgrade"),
        ("proxy-authorization", "x"),
        ("a b", "x"),
        ("x", "a\r\nb: c"),
    ] {
        let wrong = call(json!({ "url": "http://x.example/", "headers": { name: value } }));
        assert!(Target::new(&wrong).is_err(), "{name}");
    }
    let twice = json!({ "url": "http://x.example/", "headers": { "A": "1", "a": "2" } });
    assert!(Target::new(&call(twice)).is_err());
}

#[test]
fn all_addresses_of_a_name_have_to_be_public() {
    let to = |text: &str| -> SocketAddr { text.parse().unwrap() };
    let public = to("93.184.216.34:80");
    assert!(all_public(&[public]));
    assert!(!all_public(&[]));
    for private in
        ["127.0.0.1:80", "10.0.0.1:80", "169.254.169.254:80", "[::1]:80", "[::ffff:127.0.0.1]:80"]
    {
        assert!(!all_public(&[public, to(private)]), "{private}");
    }
}

/// A server that gives this answer to whoever comes.
async fn serve(answer: Vec<u8>) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut head = [0; 4096];
            let _ = stream.read(&mut head).await;
            let _ = stream.write_all(&answer).await;
        }
    });
    port
}

async fn fetch(port: u16, reach: &[Reach]) -> Result<String, FetchError> {
    target(&format!("http://127.0.0.1:{port}/x")).unwrap().fetch(reach).await
}

#[tokio::test]
async fn nothing_private_is_reached_unless_it_was_named() {
    let port = serve(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi".to_vec()).await;
    assert!(matches!(fetch(port, &[]).await, Err(FetchError::Private)));
    let other: Reach = format!("127.0.0.1:{}", port ^ 1).parse().unwrap();
    assert!(matches!(fetch(port, &[other]).await, Err(FetchError::Private)));
    let named: Reach = format!("127.0.0.1:{port}").parse().unwrap();
    assert_eq!(fetch(port, &[named]).await.unwrap(), "HTTP 200 OK\n\nhi");
}

#[tokio::test]
async fn a_redirect_is_told_and_not_followed() {
    let answer =
        "HTTP/1.1 302 Found\r\nlocation: http://169.254.169.254/\r\ncontent-length: 0\r\n\r\n";
    let port = serve(answer.into()).await;
    let named: Reach = format!("127.0.0.1:{port}").parse().unwrap();
    let told = fetch(port, &[named]).await.unwrap();
    assert_eq!(told, "HTTP 302 Found\nlocation: http://169.254.169.254/\n\n");
}

#[tokio::test]
async fn an_answer_is_whole_and_small_enough_or_none() {
    for (answer, large) in [
        (b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhi".to_vec(), false),
        (b"SSH-2.0-x\r\n".to_vec(), false),
        ([b"HTTP/1.1 200 OK\r\n\r\n".to_vec(), vec![b'x'; MAX_ANSWER + 1]].concat(), true),
    ] {
        let port = serve(answer).await;
        let named: Reach = format!("127.0.0.1:{port}").parse().unwrap();
        match fetch(port, &[named]).await {
            Err(FetchError::TooLarge) => assert!(large),
            Err(FetchError::Answer) => assert!(!large),
            other => panic!("{other:?}"),
        }
    }
}
