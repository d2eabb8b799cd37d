//! The program as an operator meets it: usage, exit codes, start and stop.

#![cfg(feature = "shell")]

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use isthmus_proto::ALPN;
use quinn::crypto::rustls::QuicClientConfig;
use quinn::{ClientConfig, ConnectionError, Endpoint};
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

fn tail_server(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tail-server"));
    // The operator's own settings must not reach in.
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("ISTHMUS_")) {
        command.env_remove(name);
    }
    // The defaults may be taken by a server that runs here.
    command.env("ISTHMUS_HTTP_PORT", "0").env("ISTHMUS_METRICS_PORT", "0");
    command.args(args);
    command
}

fn run(args: &[&str]) -> (Option<i32>, String) {
    let output = tail_server(args).output().expect("the program starts");
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn exit_codes_tell_failures_apart() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let path = |name: &str| dir.path().join(name).to_str().expect("a path").to_owned();

    let (code, said) = run(&[]);
    assert!(code == Some(2) && said.contains("--model-repository"), "{said}");
    let (code, said) = run(&["--model-repository", &path("none"), "--max-batch", "0"]);
    assert!(code == Some(2) && said.contains("max_batch"), "{said}");
    let (code, said) = run(&["--model-repository", &path("none")]);
    assert!(code == Some(3) && said.contains("none"), "{said}");
    assert_eq!(said.matches("os error").count(), 1, "{said}");

    let file = path("server.toml");
    fs::write(&file, "max_bach = 3\n").expect("written");
    let (code, said) = run(&["--config", &file]);
    assert!(code == Some(2) && said.contains(&file) && said.contains("max_bach"), "{said}");

    let empty = path("empty");
    fs::create_dir(&empty).expect("made");
    let (code, said) = run(&["--model-repository", &empty]);
    assert!(code == Some(3) && said.contains("manifest.toml"), "{said}");
    fs::create_dir(path("empty/broken")).expect("made");
    let (code, said) = run(&["--model-repository", &empty]);
    assert!(code == Some(3) && said.contains("broken") && said.contains("not served"), "{said}");
    fs::write(path("empty/broken/manifest.toml"), "format = 1\nrubbish").expect("written");
    let (code, said) = run(&["--model-repository", &empty]);
    assert!(code == Some(3) && said.contains("broken") && said.contains("manifest.toml"), "{said}");
}

/// What a server prints until it is ready.
fn start(repository: &Path, tls: &Path) -> (Child, Vec<String>) {
    start_at(repository, tls, "0")
}

/// The same with QUIC at this port.
fn start_at(repository: &Path, tls: &Path, quic_port: &str) -> (Child, Vec<String>) {
    let paths = [repository, tls].map(|path| path.to_str().expect("a path"));
    let mut child = tail_server(&["--model-repository", paths[0], "--tls-dir", paths[1]])
        .args(["--address", "127.0.0.1", "--quic-port", quic_port, "--grpc-port", "0"])
        .stdout(Stdio::piped())
        .spawn()
        .expect("the program starts");
    let lines = BufReader::new(child.stdout.take().expect("piped")).lines();
    let lines = lines.map(|line| line.expect("text")).take_while(|line| line != "ready").collect();
    (child, lines)
}

#[cfg(unix)]
#[test]
fn a_server_keeps_its_certificate_and_stops_on_sigterm() {
    let repository = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../models/bundles");
    let tls = tempfile::tempdir().expect("a temporary folder");
    let mut certificates = Vec::new();
    for _ in 0..2 {
        let (mut child, lines) = start(&repository, tls.path());
        let line = lines.iter().find(|line| line.starts_with("certificate sha256 "));
        certificates.push(line.unwrap_or_else(|| panic!("no certificate in {lines:?}")).clone());
        let told = |what: &str| {
            let line = lines.iter().find_map(|line| line.strip_prefix(what));
            line.unwrap_or_else(|| panic!("{what} in {lines:?}"))
        };
        for what in ["bundle ", "quic 127.0.0.1:", "grpc 127.0.0.1:", "metrics 127.0.0.1:"] {
            told(what);
        }
        let port = told("http 127.0.0.1:");
        let check = || run(&["--check-health", "--address", "127.0.0.1", "--http-port", port]);
        assert_eq!(check(), (Some(0), String::new()));
        let taken = ["--model-repository", "none", "--tls-dir", "none", "--http-port", port];
        let (code, said) = run(&[&taken[..], &["--address", "127.0.0.1"]].concat());
        assert!(code == Some(4) && said.contains("--http-port"), "{said}");
        let killed = Command::new("kill").args(["-TERM", &child.id().to_string()]).status();
        assert!(killed.expect("kill starts").success());
        assert_eq!(child.wait().expect("it ends").code(), Some(0));
        let (code, said) = check();
        assert!(code == Some(1) && said.contains("no answer"), "{said}");
    }
    assert_eq!(certificates[0], certificates[1]);
}

#[cfg(unix)]
#[tokio::test]
async fn a_server_that_was_killed_tells_its_former_connections_as_soon_as_it_is_back() {
    let repository = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../models/bundles");
    let tls = tempfile::tempdir().expect("a temporary folder");
    let (mut child, lines) = start(&repository, tls.path());
    let port = lines.iter().find_map(|line| line.strip_prefix("quic 127.0.0.1:"));
    let port = port.unwrap_or_else(|| panic!("no port in {lines:?}")).to_owned();

    let pem = fs::read(tls.path().join("certificate.pem")).expect("written");
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(&pem).expect("PEM")).expect("a usable certificate");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut crypto = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    crypto.alpn_protocols = vec![ALPN.to_vec()];
    let crypto = QuicClientConfig::try_from(crypto).expect("a QUIC configuration");
    let endpoint = Endpoint::client("127.0.0.1:0".parse().expect("an address"));
    let endpoint = endpoint.expect("a socket");
    let address = format!("127.0.0.1:{port}").parse().expect("an address");
    let config = ClientConfig::new(Arc::new(crypto));
    let connecting = endpoint.connect_with(config, address, "localhost");
    let connection = connecting.expect("a configuration").await.expect("a connection");

    child.kill().expect("killed");
    child.wait().expect("ended");
    let (mut child, _) = start_at(&repository, tls.path(), &port);
    let (mut send, _recv) = connection.open_bi().await.expect("a stream");
    send.write_all(b"anybody?").await.expect("taken");
    let closed = tokio::time::timeout(Duration::from_secs(3), connection.closed()).await;
    child.kill().expect("killed");
    child.wait().expect("ended");
    assert!(matches!(closed, Ok(ConnectionError::Reset)), "{closed:?}");
}
