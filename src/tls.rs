//! TLS of the server over buffers of ours: bytes from the client in, plaintext out, and back. No I/O. The commands that
//! talk to a server use [`client`].
//!
//! Everything that this crate knows of rustls is here. Its unbuffered interface is used, because the ring needs buffers that
//! it owns while a transfer is in flight. Version 0.24 of rustls replaces that interface; then this file changes, and nothing
//! else: a [`Session`] is fed, encrypts, and is closed.
//!
//! A session keeps what has arrived of a record or of a handshake message until that is complete, up to
//! `INCOMING_BYTES_MAX`. Plaintext is handed out at once.

pub mod client;

use std::io::Read;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::ring::{Ticketer, default_provider};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime, pem};
use rustls::server::{
    ParsedCertificate, ServerConnectionData, UnbufferedServerConnection, WebPkiClientVerifier,
};
use rustls::unbuffered::{
    ConnectionState, EncodeError, EncodeTlsData, EncryptError, UnbufferedStatus, WriteTraffic,
};
use rustls::{CertificateError, RootCertStore, ServerConfig};

use crate::error::{Error, ErrorKind, Result};
use crate::host::open_regular;

/// Longest file with a certificate or a key.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Most bytes of what has not arrived in full: a record, or a handshake message. A long chain of certificates fits.
const INCOMING_BYTES_MAX: usize = 32 << 10;
/// What a record adds to the plaintext, with room to spare.
const RECORD_OVERHEAD_BYTES: usize = 64;
/// Longest plaintext of a record.
const RECORD_BYTES: usize = 16 << 10;

/// Certificate, key, and what clients have to present. Clones share it.
#[derive(Clone)]
pub struct Settings {
    config: Arc<ServerConfig>,
    /// Why clients would not accept the certificate when it was read.
    not_valid: Option<Arc<str>>,
}

impl Settings {
    /// Reads a chain of certificates and its key, in PEM. With `client_ca`, clients need a certificate that one of these
    /// authorities has signed.
    ///
    /// # Errors
    /// `Configuration`, with the file.
    pub fn read(certificate: &Path, key: &Path, client_ca: Option<&Path>) -> Result<Self> {
        let chain = certificates(certificate)?;
        let not_valid = chain.first().and_then(not_valid_now).map(Arc::from);
        let key_der = read_key(key)?;
        let provider = Arc::new(default_provider());
        let builder = ServerConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
            .map_err(|error| wrong("certificate", certificate, error))?;
        let builder = match client_ca {
            None => builder.with_no_client_auth(),
            Some(path) => {
                let mut roots = RootCertStore::empty();
                for authority in certificates(path)? {
                    roots.add(authority).map_err(|error| wrong("certificate", path, error))?;
                }
                let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
                builder
                    .with_client_cert_verifier(verifier.map_err(|error| wrong("certificate", path, error))?)
            }
        };
        let mut config = builder.with_single_cert(chain, key_der).map_err(|error| match error {
            rustls::Error::InconsistentKeys(_) => {
                wrong("certificate", certificate, format!("the key {} is not its key", key.display()))
            }
            error => wrong("certificate", certificate, format!("{error}; the key is {}", key.display())),
        })?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        // Sessions are resumed from what the client keeps, so they take no memory here.
        config.ticketer = Ticketer::new().map_err(|error| wrong("certificate", certificate, error))?;
        Ok(Self { config: Arc::new(config), not_valid })
    }

    /// Why clients would not accept the certificate: it has expired, or is not valid yet.
    pub fn is_not_valid_now(&self) -> Option<&str> {
        self.not_valid.as_deref()
    }
}

/// Whether the time of a certificate is over, or has not come: the sentence that says so.
fn not_valid_now(certificate: &CertificateDer<'_>) -> Option<String> {
    let parsed = ParsedCertificate::try_from(certificate).ok()?;
    // Nobody is trusted, so the verification fails in any case; the time is what it looks at first.
    let algorithms = default_provider().signature_verification_algorithms.all;
    let verified = verify_server_cert_signed_by_trust_anchor(
        &parsed,
        &RootCertStore::empty(),
        &[],
        UnixTime::now(),
        algorithms,
    );
    let date =
        |time: UnixTime| humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_secs(time.as_secs()));
    match verified {
        Err(rustls::Error::InvalidCertificate(error)) => match error {
            CertificateError::Expired => Some("it has expired".into()),
            CertificateError::ExpiredContext { not_after, .. } => {
                Some(format!("it expired at {}", date(not_after)))
            }
            CertificateError::NotValidYet => Some("it is not valid yet".into()),
            CertificateError::NotValidYetContext { not_before, .. } => {
                Some(format!("it is not valid before {}", date(not_before)))
            }
            _ => None,
        },
        _ => None,
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let read =
        || CertificateDer::pem_slice_iter(&read_file(path)?).collect::<std::result::Result<Vec<_>, _>>();
    match read() {
        Ok(chain) if chain.is_empty() => Err(wrong("certificate", path, "there is none in the file")),
        Ok(chain) => Ok(chain),
        Err(error) => Err(wrong("certificate", path, error)),
    }
}

/// Reads a file of a few KiB.
fn read_file(path: &Path) -> std::result::Result<Vec<u8>, pem::Error> {
    let mut bytes = Vec::new();
    let read = open_regular(path).and_then(|file| file.take(FILE_BYTES_MAX).read_to_end(&mut bytes));
    read.map_err(pem::Error::Io)?;
    Ok(bytes)
}

fn read_key(path: &Path) -> Result<PrivateKeyDer<'static>> {
    let read = || PrivateKeyDer::from_pem_slice(&read_file(path)?);
    read().map_err(|error| match error {
        pem::Error::NoItemsFound => wrong("key", path, "there is none in the file, or it has a passphrase"),
        error => wrong("key", path, error),
    })
}

fn wrong(what: &str, path: &Path, why: impl std::fmt::Display) -> Error {
    Error::new(ErrorKind::Configuration, format!("the TLS {what} {}: {why}", path.display()))
}

/// One connection, seen from the server.
pub struct Session {
    connection: UnbufferedServerConnection,
    /// Bytes of a record that is not complete. rustls keeps positions in it, so every call has to show it what it has not
    /// taken yet.
    incoming: Vec<u8>,
    /// How much of `incoming` was taken.
    taken: usize,
    is_established: bool,
    has_ended: bool,
    /// The client was told that no more comes, or the connection has failed.
    is_closed: bool,
}

/// The client does not keep to the protocol, or does not trust this server. The connection is over.
#[derive(Debug)]
pub struct Failed(String);

impl std::fmt::Display for Failed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<rustls::Error> for Failed {
    fn from(error: rustls::Error) -> Self {
        Self(error.to_string())
    }
}

impl Session {
    /// A connection that was just accepted.
    ///
    /// # Errors
    /// If there is no randomness.
    pub fn new(settings: &Settings) -> std::result::Result<Self, Failed> {
        Ok(Self {
            connection: UnbufferedServerConnection::new(settings.config.clone())?,
            incoming: Vec::new(),
            taken: 0,
            is_established: false,
            has_ended: false,
            is_closed: false,
        })
    }

    /// Whether the handshake is over.
    pub fn is_established(&self) -> bool {
        self.is_established
    }

    /// Whether the client has said that it sends no more.
    pub fn has_ended(&self) -> bool {
        self.has_ended
    }

    /// Takes bytes from the client. Appends plaintext to `plain`, and what the client has to be sent to `out`, even if the
    /// connection has failed. After [`Self::close`], what still comes is dropped.
    ///
    /// # Errors
    /// If the connection has failed.
    pub fn feed(
        &mut self,
        bytes: &[u8],
        plain: &mut Vec<u8>,
        out: &mut Vec<u8>,
    ) -> std::result::Result<(), Failed> {
        if self.is_closed {
            return Ok(());
        }
        self.incoming.extend_from_slice(bytes);
        let result = self.take(plain, out);
        self.is_closed = result.is_err();
        self.incoming.drain(..self.taken.min(self.incoming.len()));
        self.taken = 0;
        self.incoming.shrink_to(if self.incoming.is_empty() { 0 } else { RECORD_BYTES }); // it may be idle for long
        if result.is_err() {
            // What was to be sent, and the alert that says why the connection has failed. After that nothing may be asked.
            while self.connection.wants_write()
                && let Ok(ConnectionState::EncodeTlsData(data)) =
                    self.connection.process_tls_records(&mut self.incoming).state
            {
                encode(data, out);
            }
        } else if INCOMING_BYTES_MAX < self.incoming.len() {
            self.is_closed = true;
            return Err(Failed("a handshake message is too long".into()));
        }
        result
    }

    fn take(&mut self, plain: &mut Vec<u8>, out: &mut Vec<u8>) -> std::result::Result<(), Failed> {
        let Self { connection, incoming, taken, is_established, has_ended, .. } = self;
        loop {
            let UnbufferedStatus { mut discard, state } =
                connection.process_tls_records(&mut incoming[*taken..]);
            match state {
                Ok(ConnectionState::ReadTraffic(mut traffic)) => {
                    while let Some(record) = traffic.next_record() {
                        let record = record?;
                        discard += record.discard;
                        plain.extend_from_slice(record.payload);
                    }
                }
                Ok(ConnectionState::EncodeTlsData(data)) => encode(data, out),
                // The caller sends `out` before anything else.
                Ok(ConnectionState::TransmitTlsData(data)) => data.done(),
                Ok(ConnectionState::WriteTraffic(_)) => {
                    *is_established = true;
                    *taken += discard;
                    return Ok(());
                }
                Ok(ConnectionState::PeerClosed) => *has_ended = true,
                Ok(ConnectionState::BlockedHandshake | ConnectionState::Closed) => {
                    *taken += discard;
                    return Ok(());
                }
                Ok(_) => return Err(Failed("the client sends data before the handshake".into())),
                Err(error) => {
                    *taken += discard;
                    return Err(error.into());
                }
            }
            *taken += discard;
        }
    }

    /// Appends `plain` to `out`, encrypted.
    ///
    /// # Errors
    /// Before the handshake is over, and after [`Self::close`].
    pub fn encrypt(&mut self, plain: &[u8], out: &mut Vec<u8>) -> std::result::Result<(), Failed> {
        let records = plain.len().div_ceil(RECORD_BYTES);
        out.reserve(plain.len() + records * RECORD_OVERHEAD_BYTES);
        self.send(out, |traffic, room| traffic.encrypt(plain, room))
    }

    /// Appends the message that says that no more will be sent, unless the connection has failed.
    ///
    /// # Errors
    /// Before the handshake is over.
    pub fn close(&mut self, out: &mut Vec<u8>) -> std::result::Result<(), Failed> {
        if std::mem::replace(&mut self.is_closed, true) {
            return Ok(());
        }
        self.send(out, |traffic, room| traffic.queue_close_notify(room))
    }

    fn send(
        &mut self,
        out: &mut Vec<u8>,
        write: impl Fn(&mut WriteTraffic<'_, ServerConnectionData>, &mut [u8]) -> Written,
    ) -> std::result::Result<(), Failed> {
        loop {
            let UnbufferedStatus { discard, state } =
                self.connection.process_tls_records(&mut self.incoming[self.taken..]);
            self.taken += discard;
            match state? {
                ConnectionState::WriteTraffic(mut traffic) => {
                    let mut result = Ok(());
                    append(out, |room| match write(&mut traffic, room) {
                        Ok(count) => Ok(count),
                        Err(EncryptError::InsufficientSize(error)) => Err(error.required_size),
                        Err(error) => {
                            result = Err(Failed(error.to_string()));
                            Ok(0)
                        }
                    });
                    return result;
                }
                // The protocol itself has something to say first, such as new keys.
                ConnectionState::EncodeTlsData(data) => encode(data, out),
                ConnectionState::TransmitTlsData(data) => data.done(),
                ConnectionState::PeerClosed => self.has_ended = true,
                _ => return Err(Failed("the connection takes no data".into())),
            }
        }
    }
}

type Written = std::result::Result<usize, EncryptError>;

fn encode(mut data: EncodeTlsData<'_, ServerConnectionData>, out: &mut Vec<u8>) {
    append(out, |room| match data.encode(room) {
        Err(EncodeError::InsufficientSize(error)) => Err(error.required_size),
        other => Ok(other.unwrap_or(0)), // it was encoded already
    });
}

/// Appends what `write` writes. It is given room, and returns how much it has used, or how much it needs.
fn append(out: &mut Vec<u8>, mut write: impl FnMut(&mut [u8]) -> std::result::Result<usize, usize>) {
    let at = out.len();
    out.resize(out.capacity().max(at + RECORD_OVERHEAD_BYTES), 0);
    let used = loop {
        match write(&mut out[at..]) {
            Ok(used) => break used,
            Err(needed) => out.resize(at + needed, 0),
        }
    };
    out.truncate(at + used);
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use rustls::pki_types::ServerName;
    use rustls::{ClientConfig, ClientConnection};

    use super::*;
    use crate::random::Random;

    /// A server and a client that trusts it.
    fn pair() -> (Settings, Arc<ClientConfig>) {
        let folder = tempfile::tempdir().unwrap();
        let key = rcgen::KeyPair::generate().unwrap();
        let params = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        let (certificate, key_file) = (folder.path().join("cert"), folder.path().join("key"));
        std::fs::write(&certificate, params.self_signed(&key).unwrap().pem()).unwrap();
        std::fs::write(&key_file, key.serialize_pem()).unwrap();
        let settings = Settings::read(&certificate, &key_file, None).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(certificates(&certificate).unwrap().remove(0)).unwrap();
        let builder = ClientConfig::builder_with_provider(Arc::new(default_provider()));
        let builder = builder.with_safe_default_protocol_versions().unwrap();
        (settings, Arc::new(builder.with_root_certificates(roots).with_no_client_auth()))
    }

    #[test]
    fn a_certificate_whose_time_is_over_or_has_not_come_is_told() {
        let of = |from: i32, to: i32| {
            let key = rcgen::KeyPair::generate().unwrap();
            let mut params = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
            (params.not_before, params.not_after) =
                (rcgen::date_time_ymd(from, 1, 1), rcgen::date_time_ymd(to, 1, 1));
            not_valid_now(params.self_signed(&key).unwrap().der())
        };
        assert_eq!(of(2000, 4000), None);
        assert_eq!(of(2000, 2001).as_deref(), Some("it expired at 2001-01-01T00:00:00Z"));
        assert_eq!(of(3000, 3001).as_deref(), Some("it is not valid before 3000-01-01T00:00:00Z"));
    }

    #[test]
    fn a_client_that_speaks_another_protocol_is_told_so() {
        let (settings, config) = pair();
        let mut config = (*config).clone();
        config.alpn_protocols = vec![b"h2".to_vec()];
        let mut client =
            ClientConnection::new(Arc::new(config), ServerName::try_from("localhost").unwrap()).unwrap();
        let mut session = Session::new(&settings).unwrap();
        let (mut hello, mut plain, mut out) = (Vec::new(), Vec::new(), Vec::new());
        client.write_tls(&mut hello).unwrap();
        assert!(session.feed(&hello, &mut plain, &mut out).is_err());
        client.read_tls(&mut &out[..]).unwrap();
        let alert = rustls::AlertDescription::NoApplicationProtocol;
        assert_eq!(client.process_new_packets().unwrap_err(), rustls::Error::AlertReceived(alert));
    }

    /// Everything that the client wants to send, in parts of random lengths, perhaps with a flipped bit.
    fn parts(client: &mut ClientConnection, random: &mut Random, flips: bool) -> Vec<Vec<u8>> {
        let mut bytes = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut bytes).unwrap();
        }
        if flips && !bytes.is_empty() && random.below(3) == 0 {
            let at = random.below(bytes.len() as u64) as usize;
            bytes[at] ^= 1 << random.below(8);
        }
        let mut parts = Vec::new();
        while !bytes.is_empty() {
            let most = [1, 7, 100, 20_000][random.below(4) as usize];
            let count = bytes.len().min(1 + random.below(most) as usize);
            parts.push(bytes.drain(..count).collect());
        }
        parts
    }

    /// A conversation, cut anywhere. Returns whether every byte has arrived both ways.
    fn talk(settings: &Settings, config: &Arc<ClientConfig>, random: &mut Random, flips: bool) -> bool {
        let name = ServerName::try_from("localhost").unwrap();
        let mut client = ClientConnection::new(config.clone(), name).unwrap();
        let mut session = Session::new(settings).unwrap();
        let sent: Vec<u8> = (0..random.below(60_000)).map(|number| number as u8).collect();
        let (mut plain, mut echoed, mut written) = (Vec::new(), Vec::new(), 0);
        for round in 0.. {
            if !client.is_handshaking() && written < sent.len() {
                written += client.writer().write(&sent[written..]).unwrap();
            }
            let mut out = Vec::new();
            for part in parts(&mut client, random, flips) {
                let before = plain.len();
                if session.feed(&part, &mut plain, &mut out).is_err() {
                    return false;
                }
                let fresh = plain[before..].to_vec();
                if !fresh.is_empty() {
                    session.encrypt(&fresh, &mut out).unwrap();
                }
            }
            let mut rest = &out[..];
            while !rest.is_empty() {
                if client.read_tls(&mut rest).is_err() || client.process_new_packets().is_err() {
                    return false;
                }
                let mut buffer = [0; 4096];
                while let Ok(count @ 1..) = client.reader().read(&mut buffer) {
                    echoed.extend_from_slice(&buffer[..count]);
                }
            }
            if session.is_established() && echoed.len() == sent.len() && written == sent.len() {
                break;
            }
            if 200 < round {
                return false;
            }
        }
        let mut out = Vec::new();
        client.send_close_notify();
        for part in parts(&mut client, random, false) {
            session.feed(&part, &mut plain, &mut out).unwrap();
        }
        session.close(&mut out).unwrap();
        assert!(session.encrypt(b"more", &mut out).is_err(), "nothing is sent after the end");
        session.feed(&[0; 100], &mut plain, &mut out).unwrap(); // dropped
        plain == sent && echoed == sent && session.has_ended()
    }

    #[test]
    fn a_conversation_is_the_same_wherever_its_records_are_cut() {
        let (settings, config) = pair();
        for seed in 0..60 {
            assert!(talk(&settings, &config, &mut Random::new(seed), false), "seed {seed}");
        }
    }

    #[test]
    fn flipped_bits_and_noise_end_a_connection_and_panic_never() {
        let (settings, config) = pair();
        let whole = (0..200).filter(|seed| talk(&settings, &config, &mut Random::new(*seed), true)).count();
        assert!((1..200).contains(&whole), "{whole}");
        for seed in 0..2_000 {
            let mut random = Random::new(seed);
            let mut session = Session::new(&settings).unwrap();
            for _ in 0..6 {
                let mut noise: Vec<u8> = (0..random.below(300)).map(|_| random.next_u64() as u8).collect();
                if 5 < noise.len() && random.below(4) != 0 {
                    // Something like the front of a record.
                    noise[..5].copy_from_slice(&[
                        20 + random.below(5) as u8,
                        3,
                        3,
                        0,
                        random.below(60) as u8,
                    ]);
                }
                let (mut plain, mut out) = (Vec::new(), Vec::new());
                let fed = session.feed(&noise, &mut plain, &mut out);
                assert!(plain.is_empty() && out.len() < 1_000, "seed {seed}");
                if fed.is_err() {
                    break;
                }
            }
        }
    }
}
