"""Sends the HTTP cases to ringkeep directly and through reverse proxies, and compares how many requests each side sees.

A relay between proxy and ringkeep counts what the proxy forwards and what ringkeep answers. After each case another
client asks through the same proxy, mostly over the same connection to ringkeep: a reply too many would reach that client.
"""

import argparse
import http.client
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from urllib.parse import parse_qsl

from relay import MARK, PATIENCE, Connection, Relay, answers, receive

from server import ROOT, Child, Ringkeep, free_port, needs

QUIET = 0.4  # Seconds without a reply, after which the client closes its side.
SHORT_BYTES = 900  # Longer cases are sent whole only.
PROBE = b"GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"


# The proxies. Each keeps one connection to ringkeep if it can. Their limits are raised, so that they pass on long heads.

def nginx(port, upstream, folder, lenient):
    more = "ignore_invalid_headers off; underscores_in_headers on; proxy_request_buffering off;" if lenient else ""
    folders = " ".join(f"{name}_temp_path {folder}/{name};" for name in ("proxy", "fastcgi", "uwsgi", "scgi"))
    (folder / "conf").write_text(f"""
        daemon off; worker_processes 1; pid {folder}/pid; error_log stderr; {"user root;" if os.geteuid() == 0 else ""}
        events {{ worker_connections 256; }}
        http {{
            access_log off; client_body_temp_path {folder}/body; {folders}
            large_client_header_buffers 8 256k; client_max_body_size 0; {more}
            upstream ringkeep {{ server 127.0.0.1:{upstream}; keepalive 1; }}
            server {{
                listen 127.0.0.1:{port};
                location / {{
                    proxy_pass http://ringkeep; proxy_http_version 1.1;
                    proxy_set_header Host $http_host; proxy_set_header Connection ""; proxy_set_header {MARK} 1;
                }}
            }}
        }}""")
    return "nginx", "-p", folder, "-c", folder / "conf"


def haproxy(port, upstream, folder, lenient):
    (folder / "conf").write_text(f"""
        global
            tune.bufsize 262144
            tune.http.maxhdr 32767
        defaults
            mode http
            timeout connect 5s
            timeout client 30s
            timeout server 30s
            http-reuse always
        listen proxy
            bind 127.0.0.1:{port}
            {"option accept-invalid-http-request" if lenient else ""}
            http-request set-header {MARK} 1
            server ringkeep 127.0.0.1:{upstream} maxconn 1
""")
    return "haproxy", "-db", "-f", folder / "conf"


def apache(port, upstream, folder, lenient):
    modules = ("mpm_event", "authz_core", "env", "headers", "proxy", "proxy_http")
    (folder / "conf").write_text("\n".join((
        *(f"LoadModule {name}_module /usr/lib/apache2/modules/mod_{name}.so" for name in modules),
        f"ServerRoot {folder}", f"DefaultRuntimeDir {folder}", f"PidFile {folder}/pid", f"ErrorLog {folder}/log",
        "User www-data", "Group www-data", "ServerName localhost", f"Listen 127.0.0.1:{port}",
        "StartServers 1", "ServerLimit 1", "ThreadsPerChild 8", "MaxRequestWorkers 8",
        "LimitRequestLine 262144", "LimitRequestFieldSize 262144", "LimitRequestFields 0",
        "ProxyPreserveHost On", "AllowEncodedSlashes NoDecode", f"RequestHeader set {MARK} 1",
        f"ProxyPass / http://127.0.0.1:{upstream}/ max=1 {'nocanon' if lenient else ''}",
        *(("HttpProtocolOptions Unsafe LenientMethods Allow0.9", "SetEnv proxy-sendchunked 1") if lenient else ()),
        "")))
    return "apache2", "-D", "FOREGROUND", "-f", folder / "conf"


def node(port, upstream, folder, lenient):
    script = ROOT / "scripts/edge/proxy.js"
    return "node", "--max-http-header-size=262144", script, port, upstream, MARK, *(["--lenient"] if lenient else [])


PROXIES = {"nginx": nginx, "haproxy": haproxy, "apache": apache, "node": node}
PROGRAMS = {"apache": "apache2"}


class Proxy(Child):
    """A proxy in front of the server at the port `target`, with a relay between them."""

    def __init__(self, name, lenient, target):
        self.folder, self.port, self.relay = Path(tempfile.mkdtemp(prefix="ringkeep-edge-")), free_port(), Relay(target)
        command = PROXIES[name](self.port, self.relay.port, self.folder, lenient)
        super().__init__(command, self.folder / "err", stdout=subprocess.DEVNULL)
        try:
            self.wait_for_port(self.port)
        except RuntimeError:
            super().stop()
            raise

    def __exit__(self, *_):
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)


# The cases.

@dataclass
class Run:
    """A case, sent whole or byte by byte."""

    case: dict
    letters: str
    whole: bool

    def __post_init__(self):
        parts = ((self.fill(text).encode("latin-1"), count) for text, count in self.case["bytes"])
        self.bytes = b"".join(part * count for part, count in parts)
        self.name = f"{self.case['name']}{'' if self.whole else ', byte by byte'}"
        self.is_open = bool(self.case.get("ends") or self.case.get("waits"))
        self.key = self.fill(self.case.get("stored", ["smuggled"])[0])

    def fill(self, text):
        return text.replace("@@", self.letters)

    def send(self, port):
        """Sends the case, and a probe that ends the connection. Returns the statuses of the replies."""
        data = self.bytes if self.is_open else self.bytes + PROBE
        received = b""
        with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as client:
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with suppress(OSError):  # The rest may be refused.
                for part in [data] if self.whole else (data[at : at + 1] for at in range(len(data))):
                    client.sendall(part)
                if self.case.get("ends"):
                    client.shutdown(socket.SHUT_WR)
            with suppress(OSError):
                client.settimeout(QUIET)
                while True:
                    try:
                        part = client.recv(1 << 16)
                    except TimeoutError:
                        if client.gettimeout() == PATIENCE:
                            break
                        client.shutdown(socket.SHUT_WR)  # The proxy waits for more: it gets the end.
                        client.settimeout(PATIENCE)
                        continue
                    if not part:
                        break
                    received += part
        return answers(received, ended=True)


def runs(text):
    found = []
    for case in json.loads((ROOT / "tests/http_cases.json").read_text()):
        for whole in (True, False):
            letters = "".join(chr(ord("a") + len(found) // 26**at % 26) for at in range(4))
            run = Run(case, letters, whole)
            if text in case["name"] and (whole or len(run.bytes) <= SHORT_BYTES):
                found.append(run)
    return found


def ask(client, method, target, body=None):
    client.request(method, target, body)
    reply = client.getresponse()
    return reply.status, reply.read()


def client_of(port):
    return closing(http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE))


def ringkeep_with_values():
    server = Ringkeep("--shutdown", "off", "--sync", "never", "--threads", "1", "--memory", "64MiB")
    with client_of(server.port) as client:
        ask(client, "POST", "/set?key=a&value=b")
        ask(client, "POST", "/set?key=mb", b"z" * (1 << 20))
    return server


# The comparison.

@dataclass
class Outcome:
    run: Run
    replies: list
    forwarded: int = 0
    answered: list = field(default_factory=list)
    unfinished: int = 0
    used_again: bool = False
    hidden_is_seen: bool = False
    wrong: list = field(default_factory=list)


def values_set(marked, key):
    """The values that the proxy has knowingly forwarded for the key."""
    for head, body in marked:
        found = re.match(rb"[A-Z]+ (?:https?://[^/?# ]*)?/set\?(\S*) ", head)
        query = dict(parse_qsl(found[1].decode("latin-1"), keep_blank_values=True, encoding="latin-1")) if found else {}
        if query.get("key") == key:
            yield query["value"].encode("latin-1") if "value" in query else body


def check_keys(outcome, marked, ringkeep):
    """A key that the case hides, or names, exists only if the proxy has forwarded a set of it, with that value."""
    for key in {"smuggled", outcome.run.key}:
        query = "key=" + "".join(f"%{byte:02x}" for byte in key.encode("latin-1"))
        status, value = ask(ringkeep, "GET", f"/get?{query}")
        if status == 404:
            continue
        ask(ringkeep, "DELETE", f"/del?{query}")
        if value not in values_set(marked, key):
            outcome.wrong.append(f"{key!r} is {value!r:.200}, which the proxy has not forwarded")
        outcome.hidden_is_seen |= key == "smuggled"


def probe(outcome, port, number):
    """Another client behind the same proxy writes and reads. Only its own answers will do."""
    try:
        with client_of(port) as client:
            found = [ask(client, "POST", f"/set?key=probe&value={number}"), ask(client, "GET", "/get?key=probe")]
    except (OSError, http.client.HTTPException) as error:
        found = repr(error)
    if found != [(200, b"OK\n"), (200, str(number).encode())]:
        outcome.wrong.append(f"another client, who wrote and read {number}, got {found!r:.300}")


def send_through(proxy, ringkeep, run, number):
    relay = proxy.relay
    relay.begin()
    outcome = Outcome(run, run.send(proxy.port))
    settled = relay.settle()
    before = [(one, *one.read()[:3]) for one in relay.connections]
    probe(outcome, proxy.port, number)
    if not (relay.settle() and settled):
        outcome.wrong.append(f"after {PATIENCE} s a request was still in flight")
    for one, forwarded, statuses, unfinished in before:
        outcome.unfinished += unfinished
        outcome.forwarded += forwarded - unfinished
        outcome.answered += statuses
        outcome.used_again |= 0 < forwarded < one.read()[0]
    outcome.wrong += filter(None, (one.disagreement() for one in relay.connections))
    if ringkeep:
        check_keys(outcome, [request for one in relay.connections for request in one.marked()], ringkeep)
    return outcome


def run_all(name, lenient, all_runs):
    with ringkeep_with_values() as server, Proxy(name, lenient, server.port) as proxy, client_of(server.port) as client:
        outcomes = [send_through(proxy, client, run, number) for number, run in enumerate(all_runs)]
        return outcomes, proxy.relay.total


KINDS = {
    "same": "the same answers",
    "refused": "the proxy refuses what ringkeep refuses as well",
    "strict": "the proxy refuses what ringkeep takes",
    "mended": "the proxy forwards a valid form of what ringkeep refuses",
    "goes on": "ringkeep refuses one request; the proxy reads on behind it",
    "unfinished": "the proxy forwards a part, then finds a fault or the end",
    "fewer": "the proxy closes earlier, or takes what follows for a body",
    "dropped": "all forwarded and answered; the proxy drops or changes an answer",
    "changed": "the proxy forwards another form, which gets another status",
}


def kind(outcome, direct):
    """Why the replies through the proxy are others than the direct ones."""
    refused = [status for status in direct if 400 <= status]
    if outcome.replies == direct:
        return "same"
    if outcome.unfinished:
        return "unfinished"
    if not outcome.forwarded:
        return "refused" if refused or not direct else "strict"
    if outcome.answered == direct or len(outcome.replies) < len(outcome.answered):
        return "dropped"
    if len(direct) < len(outcome.answered) or (refused and not any(400 <= status for status in outcome.answered)):
        return "goes on" if any(400 <= status for status in outcome.answered) else "mended"
    return "fewer" if len(outcome.answered) < len(direct) else "changed"


# The test of this test.

def lenient_server():
    """The port of a server that takes every empty line for the end of a request, in bodies too."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve(peer):
        rest = b""
        while part := receive(peer):
            *heads, rest = (rest + part).split(b"\r\n\r\n")
            with suppress(OSError):
                peer.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nOK\n" * len(heads))

    def accept():
        while True:
            threading.Thread(target=serve, args=listener.accept()[:1], daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    return listener.getsockname()[1]


def check_count():
    """Recordings of which it is known whether the two sides agree."""
    head = f"POST /set?key=a HTTP/1.1\r\nContent-Length: 3\r\n{MARK}: 1\r\n\r\n".encode()
    reply = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nOK\n"
    late = reply.replace(b"200 OK", b"408 Request Timeout")
    for sent, answered, right in (
        (head + b"abc", reply, True), (head + b"abc" + head + b"abc", reply * 2, True), (head + b"ab", b"", True),
        (head + b"abc", reply * 2, False), (head + b"abc" + head + b"abc", reply, False), (head + b"abc", b"", False),
        (head + b"abc", late, False), (head + b"abc", reply + b"x", False), (head + b"ab", reply * 2, False),
    ):
        if (Connection(sent, answered).disagreement() is None) != right:
            sys.exit(f"http_diff: the count of {sent} and {answered} is wrong")


def check_notices(name, lenient, target):
    """A server that takes a body for a request has to be noticed through this proxy."""
    bytes_ = [["POST /set?key=a HTTP/1.1\r\nHost: localhost\r\nContent-Length: 22\r\n\r\nGET /get HTTP/1.1\r\n\r\nx", 1]]
    with Proxy(name, lenient, target) as proxy:
        outcome = send_through(proxy, None, Run({"name": "control", "bytes": bytes_}, "", True), 0)
    if not any("were answered" in wrong for wrong in outcome.wrong):
        sys.exit(f"http_diff: a request smuggled through {name} would not be noticed: {outcome}")


def short(statuses):
    groups = [(status, len(list(group))) for status, group in groupby(statuses)]
    return " ".join(f"{count}×{status}" if 1 < count else f"{status}" for status, count in groups) or "none"


COLUMNS = {
    "runs": len,
    "forwarded": lambda outcomes: sum(one.forwarded for one in outcomes),
    "answered": lambda outcomes: sum(len(one.answered) for one in outcomes),
    "agree": lambda outcomes: sum(not one.wrong for one in outcomes),
    "unfinished": lambda outcomes: sum(one.unfinished for one in outcomes),
    "used again": lambda outcomes: sum(one.used_again for one in outcomes),
    "hidden": lambda outcomes: sum(one.hidden_is_seen for one in outcomes),
}


def report(results, direct, lists):
    print(f"""directly: {len(direct)} runs, {sum(map(len, direct))} requests answered

Through a proxy: the requests that it forwarded and that ringkeep answered, the runs in which they agree, the requests
of which the proxy forwarded only a part, the runs after which another client used the same connection to ringkeep, the
runs in which a hidden request is a request to both, and the connections to ringkeep.
""")
    print(f"{'proxy':18}" + "".join(f"{name:>12}" for name in [*COLUMNS, "connections"]))
    for label, (outcomes, connections) in results.items():
        print(f"{label:18}" + "".join(f"{count(outcomes):12}" for count in COLUMNS.values()) + f"{connections:12}")
    print("\nRuns by the answers that the client gets, compared with the direct ones, in the order of these rows:\n")
    pairs = {label: list(zip(outcomes, direct, strict=True)) for label, (outcomes, _) in results.items()}
    kinds = [Counter(kind(*pair) for pair in one) for one in pairs.values()]
    for name, text in KINDS.items():
        print(f"{text:66}" + "".join(f"{count[name]:5}" for count in kinds))
    for label, one, replies in [(label, *pair) for label, found in pairs.items() for pair in found if lists]:
        if one.replies != replies:
            print(f"    {label}: {kind(one, replies)}: {one.run.name}: directly {short(replies)}, "
                  f"through the proxy {short(one.replies)}, ringkeep to the proxy {short(one.answered)}")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--case", default="")
    parser.add_argument("proxies", nargs="*")
    options = parser.parse_args()
    wanted = options.proxies or list(PROXIES)
    if not set(wanted) <= set(PROXIES):
        parser.error(f"the proxies are {', '.join(PROXIES)}")
    needs()
    os.environ["PATH"] += ":/usr/sbin"
    names = [name for name in wanted if shutil.which(PROGRAMS.get(name, name))]
    for name in set(wanted) - set(names):
        print(f"skipped: {name} is not installed")

    check_count()
    settings = [(name, lenient) for name in names for lenient in (False, True)]
    target = lenient_server()
    for setting in settings:
        check_notices(*setting, target)

    all_runs = runs(options.case)
    with ringkeep_with_values() as server:
        direct = [run.send(server.port) for run in all_runs]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda setting: run_all(*setting, all_runs), settings))
    results = {name + ", lenient" * lenient: one for (name, lenient), one in zip(settings, found, strict=True)}
    report(results, direct, options.list)

    wrong = [(label, one) for label, (outcomes, _) in results.items() for one in outcomes if one.wrong]
    for label, one in wrong:
        print(f"\n{label}: {one.run.name}\n    sent: {one.run.bytes!r:.1500}\n    " + "\n    ".join(one.wrong))
    forwarded, answered = (sum(COLUMNS[name](outcomes) for outcomes, _ in found) for name in ("forwarded", "answered"))
    print(f"\nhttp_diff: {sum(run.whole for run in all_runs)} cases through {len(names)} proxies and directly, "
          f"{forwarded} requests forwarded, {answered} answered, {len(wrong)} disagreements")
    sys.exit(1 if wrong else 0)


main()
