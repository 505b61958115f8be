//! TLS of a client: what it trusts, and its own certificate if the server asks for one. Over blocking streams of std.
//!
//! The server is always verified, on loopback as well: any program of this host could listen there and take the token.
//! What is trusted comes from a file, because a server of this kind rarely has a certificate of a public authority. The
//! file may hold authorities. It may also hold the server's own certificate, self-signed or not: then the server has to
//! present exactly this certificate. Its name does not matter, because only the server has its key.

use std::io::{Read, Write};
use std::path::Path;
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::ring::default_provider;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{
    CertificateError, ClientConfig, ClientConnection, DigitallySignedStruct, RootCertStore, SignatureScheme,
    StreamOwned,
};

use super::{certificates, read_key, wrong};
use crate::error::{Error, ErrorKind, Result};

/// What a client trusts, and how it presents itself.
#[derive(Clone)]
pub struct Settings(Arc<ClientConfig>);

impl Settings {
    /// Trusts the certificates of the file `trusted`, in PEM. `identity` is the client's own certificate and its key.
    ///
    /// # Errors
    /// `Configuration`, with the file.
    pub fn read(trusted: &Path, identity: Option<(&Path, &Path)>) -> Result<Self> {
        let provider = Arc::new(default_provider());
        let known = certificates(trusted)?;
        let mut roots = RootCertStore::empty();
        for certificate in &known {
            roots.add(certificate.clone()).map_err(|error| wrong("certificate", trusted, error))?;
        }
        let authorities = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider.clone())
            .build()
            .map_err(|error| wrong("certificate", trusted, error))?;
        let builder = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
            .map_err(|error| wrong("certificate", trusted, error))?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Verifier { known, authorities }));
        let config = match identity {
            None => builder.with_no_client_auth(),
            Some((certificate, key)) => {
                let (chain, key): (_, PrivateKeyDer<'_>) = (certificates(certificate)?, read_key(key)?);
                builder
                    .with_client_auth_cert(chain, key)
                    .map_err(|error| wrong("certificate", certificate, error))?
            }
        };
        Ok(Self(Arc::new(config)))
    }

    /// A connection to the server `host` over `stream`. The handshake takes place with the first transfer.
    ///
    /// # Errors
    /// `Configuration` if `host` is neither a name nor an address.
    pub fn connect<S: Read + Write>(
        &self,
        host: &str,
        stream: S,
    ) -> Result<StreamOwned<ClientConnection, S>> {
        let refused = |why: String| Error::new(ErrorKind::Configuration, format!("TLS with {host}: {why}"));
        let name = ServerName::try_from(host.to_owned()).map_err(|error| refused(error.to_string()))?;
        let connection =
            ClientConnection::new(self.0.clone(), name).map_err(|error| refused(error.to_string()))?;
        Ok(StreamOwned::new(connection, stream))
    }
}

/// How an alert begins: the answer of a server of TLS to a request that is not encrypted.
pub const ALERT: &[u8] = &[0x15, 3];

/// Whether a transfer has failed because what came is not of TLS.
pub fn speaks_no_tls(error: &std::io::Error) -> bool {
    let cause = error.get_ref().and_then(|cause| cause.downcast_ref::<rustls::Error>());
    matches!(cause, Some(rustls::Error::InvalidMessage(_)))
}

impl std::fmt::Debug for Settings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Settings") // a private key is in them
    }
}

/// Accepts the certificates that are known, and those that lead to one of them and have the right name.
#[derive(Debug)]
struct Verifier {
    known: Vec<CertificateDer<'static>>,
    authorities: Arc<WebPkiServerVerifier>,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> std::result::Result<ServerCertVerified, rustls::Error> {
        if self.known.iter().any(|known| known.as_ref() == certificate.as_ref()) {
            return Ok(ServerCertVerified::assertion());
        }
        let verified = self.authorities.verify_server_cert(certificate, intermediates, name, ocsp, now);
        verified.map_err(|error| match error {
            // The second is, among others, a certificate that has signed itself, and is not in the file.
            rustls::Error::InvalidCertificate(
                CertificateError::UnknownIssuer | CertificateError::Other(_),
            ) => rustls::Error::General(
                "no certificate in the file of trusted ones has signed that of the server, or equals it"
                    .into(),
            ),
            error => error,
        })
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        self.authorities.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        self.authorities.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.authorities.supported_verify_schemes()
    }
}
