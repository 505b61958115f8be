"""What the checks of TLS share: certificates, a server that uses them, and how a check is reported."""

import contextlib
import ssl
import subprocess
import time

from tls_client import PATIENCE, Client, Forger

from server import Ringkeep

GET = b"GET /get?key=%b HTTP/1.1\r\nHost: localhost\r\n\r\n"
LIVE = b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n"
SET_HEAD = b"POST /set?key=%b HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n"

outcomes = []


@contextlib.contextmanager
def check(name):
    """One check, which fails if its block raises. The block may add to the line by `notes.append`."""
    notes = []
    try:
        yield notes
    except Exception as error:
        outcomes.append(False)
        print(f"FAILED  {name}: {type(error).__name__}: {error}", flush=True)
    else:
        outcomes.append(True)
        print("ok     ", name, *(f"({note})" for note in notes), flush=True)


def run(*command, stdin="", status=None, timeout=PATIENCE):
    """Runs a command; returns its status and what it has printed."""
    words = [str(word) for word in command]
    done = subprocess.run(words, input=stdin, capture_output=True, text=True, errors="replace", timeout=timeout, check=False)
    assert status in (None, done.returncode), f"status {done.returncode}: {done.stdout[-300:]} {done.stderr[-300:]}"
    return done.returncode, done.stdout + done.stderr


def until(condition):
    """Waits for what nothing announces, such as a line of a log."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it does not happen"
        time.sleep(0.02)


class Certificates:
    """An authority and what it has signed; another authority; all of them made with openssl."""

    def __init__(self, folder):
        self.folder = folder
        (folder / "index").touch()
        (folder / "config").write_text(
            f"[req]\ndistinguished_name=name\n[name]\n[ca]\ndefault_ca=it\n[policy]\ncommonName=supplied\n"
            f"[it]\ndatabase={folder}/index\nnew_certs_dir={folder}\nrand_serial=yes\ndefault_md=sha256\n"
            f"policy=policy\ncopy_extensions=copy\nunique_subject=no\n")
        for name in ("ca", "other_ca"):
            self.request(name, "ec", "-x509", "-days", "400", "-addext", "basicConstraints=critical,CA:TRUE", "-out", self[f"{name}.pem"])
        for name, kind in (("server", "ec"), ("renewed", "ec"), ("rsa", "rsa"), ("client", "ec")):
            self.sign(name, kind)
        self.sign("stranger", "ec", ca="other_ca")
        self.sign("expired", "ec", years=(2020, 2021))

    def __getitem__(self, name):
        return self.folder / name

    def request(self, name, kind, *flags):
        kinds = {"ec": ["ec", "-pkeyopt", "ec_paramgen_curve:P-256"], "rsa": ["rsa:2048"]}
        run("openssl", "req", "-new", "-newkey", *kinds[kind], "-nodes", "-keyout", self[f"{name}.key"], "-subj", f"/CN={name}",
            "-config", self["config"], *flags, status=0)

    def sign(self, name, kind, ca="ca", years=None):
        dates = ["-startdate", f"{years[0]}0101000000Z", "-enddate", f"{years[1]}0101000000Z"] if years else ["-days", "300"]
        self.request(name, kind, "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-addext", "basicConstraints=CA:FALSE",
                     "-out", self[f"{name}.csr"])
        run("openssl", "ca", "-batch", "-notext", "-config", self["config"], "-cert", self[f"{ca}.pem"], "-keyfile", self[f"{ca}.key"],
            "-in", self[f"{name}.csr"], "-out", self[f"{name}.pem"], *dates, status=0)

    def context(self, version=ssl.TLSVersion.TLSv1_3):
        context = ssl.create_default_context(cafile=self["ca.pem"])
        context.minimum_version = context.maximum_version = version
        return context

    def server(self, *flags, name="server"):
        return Ringkeep("--tls-cert", self[f"{name}.pem"], "--tls-key", self[f"{name}.key"], *flags)


class Edge:
    """A server with TLS, and the ways to ask it something."""

    def __init__(self, certificates, server):
        self.certificates, self.server, self.port = certificates, server, server.port
        self.url = f"https://localhost:{self.port}"
        self.modern = certificates.context()
        self.old = certificates.context(ssl.TLSVersion.TLSv1_2)
        with Client(self.port, self.modern) as client:
            self.hello = client.hello()

    def client(self, context=None, **options):
        return Client(self.port, context or self.modern, **options).handshake()

    def forger(self):
        return Forger(self.port, self.modern)

    def value(self, key):
        with self.client() as client:
            return client.ask(GET % key)

    def lives(self):
        with self.client() as client:
            assert client.ask(LIVE)[0] == 200

    def curl(self, *flags, target="/livez", status=0):
        return run("curl", "-sS", "-v", "-m", PATIENCE, "--cacert", self.certificates["ca.pem"], *flags, self.url + target, status=status)

    def s_client(self, *flags, stdin="", status=None):
        return run("openssl", "s_client", "-connect", f"localhost:{self.port}", "-CAfile", self.certificates["ca.pem"], *flags, stdin=stdin, status=status)[1]
