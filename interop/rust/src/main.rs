//! The standardwebhooks library of Rust verifies what the gateway sends.
//!
//! Usage: postern-interop HTTP LISTEN   (the configuration pushes topic interop-rust to LISTEN)
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};
use standardwebhooks::Webhook;

const SECRET: &str = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD";
const PATIENCE: Duration = Duration::from_secs(60);

fn check(name: &str, ok: bool, what: &str) {
    if !ok {
        eprintln!("FAILED {name}: {what}");
        std::process::exit(1);
    }
    println!("ok   {name}");
}

/// Reads a request or an answer: its first line, headers and body.
fn message(reader: &mut impl BufRead) -> std::io::Result<(String, HeaderMap, Vec<u8>)> {
    let mut first = String::new();
    reader.read_line(&mut first)?;
    let mut headers = HeaderMap::new();
    let mut length = 0;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let Some((name, value)) = line.trim_end().split_once(':') else { break };
        if name.eq_ignore_ascii_case("content-length") {
            length = value.trim().parse().unwrap_or(0);
        }
        if let (Ok(name), Ok(value)) = (HeaderName::from_bytes(name.as_bytes()), HeaderValue::from_str(value.trim())) {
            headers.append(name, value);
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    Ok((first, headers, body))
}

fn publish(address: &str, body: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    write!(
        stream,
        "POST /v1/topics/interop-rust/events HTTP/1.1\r\nHost: {address}\r\nContent-Type: text/plain\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )?;
    Ok(message(&mut BufReader::new(stream))?.0)
}

fn main() -> std::io::Result<()> {
    let args: Vec<String> = std::env::args().collect();
    let listener = TcpListener::bind(&args[2])?;
    let verifier = Webhook::new(SECRET).expect("the secret is one");
    let bodies = ["tea", "", "caf\u{e9} \u{2615}"];
    for body in bodies {
        let answer = publish(&args[1], body)?;
        check("it is published", answer.starts_with("HTTP/1.1 200"), &answer);
        // A connection of the gateway's is kept: each event comes on a new one only
        // because this server closes them.
        let (stream, _) = listener.accept()?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let (_, headers, got) = message(&mut BufReader::new(&stream))?;
        write!(&stream, "HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n")?;
        let verified = verifier.verify(&got, &headers);
        check(&format!("standardwebhooks verifies {body:?}"), verified.is_ok(), &format!("{verified:?} {headers:?}"));
        check("it is what was published", got == body.as_bytes(), &format!("{got:?}"));
        let mut forged = got.clone();
        forged.push(b'!');
        check("and nothing else", verifier.verify(&forged, &headers).is_err(), "a forged body is verified");
    }
    println!("rust: {} passed, 0 failed", bodies.len() * 4);
    Ok(())
}
