"""TLS as clients of other makes see it, and as broken or hostile clients find it."""

import json
import os
import re
import select
import shutil
import signal
import ssl
import subprocess
import sys
import tempfile
from pathlib import Path

import tls_records
from tls_client import PATIENCE, connect, rest_of, send
from tls_common import LIVE, Certificates, Edge, check, outcomes, run, until

from server import needs

# What testssl has against the test certificate. And against the order of ciphers, which clients choose: all are strong.
EXPECTED_FINDINGS = {"cert_trust", "cert_chain_of_trust", "cert_revocation", "cert_crlDistributionPoints", "cert_ocspURL", "cipher_order"}


def curl_checks(edge, name):
    for version in ("1.2", "1.3"):
        with check(f"curl, {name} certificate, TLS {version}: set, get and del of 3 MB"), tempfile.TemporaryDirectory() as folder:
            value, back = Path(folder, "value"), Path(folder, "back")
            value.write_bytes(os.urandom(3_000_000))
            only = ["--tlsv" + version, "--tls-max", version]
            said = edge.curl(*only, "--data-binary", f"@{value}", target="/set?key=curl")[1]
            assert f"SSL connection using TLSv{version}" in said and "SSL certificate verify ok" in said, said
            assert "ALPN: server accepted http/1.1" in said, said
            edge.curl(*only, "-o", back, target="/get?key=curl")
            assert value.read_bytes() == back.read_bytes(), "other bytes came back"
            edge.curl(*only, "-X", "DELETE", target="/del?key=curl")
            edge.curl(*only, "-f", target="/get?key=curl", status=22)


def version_checks(edge, plain_port):
    for version in ("-tls1", "-tls1_1"):
        with check(f"openssl {version}: refused by the server"):
            said = edge.s_client(version, "-cipher", "ALL:@SECLEVEL=0", status=1)
            assert re.search("alert (protocol version|handshake failure)", said), said
    for version in ("-tls1_2", "-tls1_3"):
        with check(f"openssl {version} that offers h2 only: refused with no_application_protocol"):
            said = edge.s_client(version, "-alpn", "h2", status=1)
            assert "alert no application protocol" in said, said[-120:]
    with check("curl that offers no ALPN: served"):
        edge.curl("--no-alpn")
    with check("curl that has to try again with another group (HelloRetryRequest): served"):
        edge.curl("--curves", "P-521:X25519")
    with check("curl without the authority: does not trust the server, which lives"):
        run("curl", "-sS", edge.url + "/livez", status=60)
        edge.lives()
    with check("HTTP to the port of TLS: ended at once, and not answered in HTTP"):
        with connect(edge.port) as stream:
            send(stream, LIVE)
            assert len(received := rest_of(stream)) <= 7, received
        assert run("curl", "-sS", "-m", PATIENCE, f"http://localhost:{edge.port}/livez")[0] not in (0, 28)
        edge.lives()
    with check("TLS to the port of HTTP: ended at once"):
        assert run("curl", "-sS", "-m", PATIENCE, f"https://localhost:{plain_port}/livez")[0] == 35
        run("curl", "-sS", "-m", PATIENCE, "-f", f"http://localhost:{plain_port}/livez", status=0)


def openssl_checks(edge):
    request = LIVE.decode().replace("Host", "Connection: close\r\nHost")
    with check("openssl s_client: verified, and served"):
        said = edge.s_client("-verify_return_error", "-ign_eof", stdin=request)
        assert "Verify return code: 0 (ok)" in said and "HTTP/1.1 200" in said, said
    with check("openssl -tls1_2, renegotiation: refused, and the server lives"):
        dialogue(edge, ("-tls1_2",), (b"R\n", b"no renegotiation"))
        edge.lives()
    with check("openssl -tls1_2 -reconnect: five times with the same session"):
        said = edge.s_client("-tls1_2", "-reconnect", stdin="Q\n")
        assert said.count("Reused, TLSv1.2") == 5, said
    with check("TLS 1.3: a session is resumed"):
        with edge.client() as first:
            first.ask(LIVE)
            session = first.tls.session
        with edge.client(session=session) as second:
            assert second.tls.session_reused and second.ask(LIVE)[0] == 200
    for letter in (b"K\n", b"k\n"):
        with check(f"openssl s_client, new keys by {letter[:1].decode()} before each of three requests: served"):
            dialogue(edge, (), *((letter, b"KEYUPDATE"), (LIVE, b"HTTP/1.1 200")) * 3)


def dialogue(edge, flags, *steps):
    """Gives s_client its input in steps, as it obeys a letter only if it comes alone. Each step waits for an output."""
    command = ["openssl", "s_client", "-connect", f"localhost:{edge.port}", *flags]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        try:
            for given, expected in ((b"", b"Verify return code"), *steps):
                process.stdin.write(given)
                process.stdin.flush()
                seen = b""
                while expected not in seen:
                    assert select.select([process.stdout], [], [], PATIENCE)[0], f"no {expected!r} after {seen!r}"
                    more = os.read(process.stdout.fileno(), 1 << 16)
                    assert more, f"the end, and no {expected!r} in {seen!r}"
                    seen += more
        finally:
            process.kill()


def reload(certificates):
    name = "changing"

    def install(certificate, key):
        shutil.copy(certificates[f"{certificate}.pem"], certificates[f"{name}.pem"])
        shutil.copy(certificates[f"{key}.key"], certificates[f"{name}.key"])

    install("server", "server")
    with certificates.server(name=name) as server:
        edge = Edge(certificates, server)

        def shows(certificate):
            with edge.client() as client:
                return ssl.DER_cert_to_PEM_cert(client.tls.getpeercert(True)).strip() == certificates[f"{certificate}.pem"].read_text().strip()

        def refuses(what):
            with check(f"SIGHUP with a certificate that {what}: refused with a line in the log, the old one stays") as notes:
                lines = server.log.read_text().count("\n")
                server.process.send_signal(signal.SIGHUP)
                until(lambda: lines < server.log.read_text().count("\n"))
                said = server.log.read_text().splitlines()[lines]
                assert "the TLS certificate" in said and shows("server"), said
                notes.append(said[said.index("the TLS"):].replace(str(certificates.folder), "…"))

        with edge.client() as open_client:
            send(open_client.socket, open_client.seal(LIVE[:10]))
            certificates[f"{name}.pem"].write_text("no certificate\n")
            refuses("is not one")
            install("renewed", "server")
            refuses("belongs to another key")
            with check("SIGHUP with a new certificate: new connections see it"):
                install("renewed", "renewed")
                server.process.send_signal(signal.SIGHUP)
                until(lambda: shows("renewed"))
            with check("a connection that was open all the time goes on, within its request"):
                assert open_client.ask(LIVE[10:])[0] == 200 and open_client.ask(LIVE)[0] == 200


def client_certificates(certificates):
    with certificates.server("--tls-client-ca", certificates["ca.pem"]) as server:
        edge = Edge(certificates, server)
        for version in ("1.2", "1.3"):
            for name, alert in (("client", None), (None, "certificate required"), ("stranger", "unknown ca"), ("expired", "certificate expired")):
                with check(f"TLS {version}, client certificate: {name or 'none'}: {'refused' if alert else 'served'}") as notes:
                    own = ["--cert", certificates[f"{name}.pem"], "--key", certificates[f"{name}.key"]] if name else []
                    status, said = edge.curl("--tls-max", version, *own, status=None)
                    if alert:
                        assert status and alert in said and "HTTP/1.1 200" not in said, said
                        notes.append(alert)
                    else:
                        assert status == 0, said


def wrk_check(edge):
    with check("wrk, 32 connections, 3 s: no errors") as notes:
        said = run("wrk", "-t1", "-c32", "-d3s", edge.url + "/get?key=bytes", status=0)[1]
        assert "Socket errors" not in said and "Non-2xx" not in said, said
        notes.append(re.search(r"\d+ requests in", said)[0] + " 3 s")


def testssl_check(edge, folder):
    if not shutil.which("testssl"):
        print("left out: testssl is not installed")
        return
    with check("testssl: nothing of severity HIGH or CRITICAL, except for the test certificate") as notes:
        report = folder / "testssl.json"
        run("testssl", "--quiet", "--color", "0", "--warnings", "batch", "--nodns", "none", "--jsonfile", report,
            "-p", "-S", "-P", "-U", "-f", "-s", f"localhost:{edge.port}", timeout=300)
        findings = json.loads(report.read_text())
        severe = [finding for finding in findings if finding["severity"] in ("HIGH", "CRITICAL") and finding["id"] not in EXPECTED_FINDINGS]
        assert 50 < len(findings) and not severe, severe or findings
        notes.append(f"{len(findings)} findings")


def main():
    needs("curl", "openssl", "wrk")
    with tempfile.TemporaryDirectory(prefix="ringkeep-tls-") as name:
        folder = Path(name)
        certificates = Certificates(folder)
        with certificates.server(name="rsa") as server:
            curl_checks(Edge(certificates, server), "RSA")
        with certificates.server("--listen", "http://127.0.0.1:0") as server:
            plain_port = int(server.process.stdout.readline().rsplit(":", 1)[1])
            edge = Edge(certificates, server)
            curl_checks(edge, "ECDSA")
            version_checks(edge, plain_port)
            openssl_checks(edge)
            tls_records.ends_of_connections(edge)
            tls_records.records_of_all_sizes(edge)
            tls_records.before_the_handshake(edge)
            tls_records.after_the_handshake(edge)
            tls_records.slow_handshakes(edge)
            wrk_check(edge)
            testssl_check(edge, folder)
            with check("the server has not panicked, and ends with status 0"):
                assert "panic" not in server.log.read_text()
                assert server.stop() == 0
        tls_records.slow_requests(certificates)
        reload(certificates)
        client_certificates(certificates)
    failed = outcomes.count(False)
    print(f"tls: {len(outcomes)} checks, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
