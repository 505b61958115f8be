"""Hostile web pages in a real browser: they try to set, delete, stop and read, and must achieve nothing.

Each attempt has keys of its own, and a port of its own with a relay to ringkeep, which records requests and replies. So it is
known what an attempt has sent, what it got, and whether it has changed anything. Controls are attempts that have to succeed:
their relay removes what the browser says of the page, and what keeps values from being run.
"""

import asyncio
import contextlib
import functools
import http.client
import json
import re
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from urllib.parse import quote

from server import RINGKEEP, Child, Ringkeep, needs

SECRET = "0123456789abcdef"
LANES = 6  # pages at a time
PAGE_SECONDS = 5  # for one page
BROWSER_SECONDS = 20  # for a browser that starts with a page
ALL_SECONDS = 240  # for all of them
ARRIVE = 0.9  # of the attempts have to reach the server; the browser itself refuses some

# What the browser has against requests to the local network is switched off, because other browsers lack it.
FLAGS = """--headless=new --no-sandbox --disable-gpu --no-first-run --disable-popup-blocking --disable-background-networking
 --disable-renderer-backgrounding --disable-background-timer-throttling --disable-backgrounding-occluded-windows
 --disable-features=LocalNetworkAccessChecks,HttpsUpgrades --autoplay-policy=no-user-gesture-required"""
NAMES = "MAP *.test 127.0.0.1, MAP ringkeep 127.0.0.1, MAP *.localhost 127.0.0.1, MAP localhost. 127.0.0.1"

HELPERS = """
const done = seen => fetch(`${home}/done?${id}`, {method: 'POST', mode: 'no-cors', body: `${seen}`});
const make = (tag, fields, parent = document.body) => parent.appendChild(Object.assign(document.createElement(tag), fields));
const load = (tag, fields) => make(tag, {...fields, onload: done, onerror: done});
const style = text => make('style', {textContent: text});
const rules = kind => make('script', {type: 'speculationrules', textContent: JSON.stringify({[kind]: [{urls: [url], eagerness: 'immediate'}]})});
const close = other => { onpagehide = () => other.close(); return other; };
const tell = reply => reply.then(reply => reply.text()).then(done, done);
const send = (method, options) => tell(fetch(url, {method, body: 'a=b', ...options}));
const xhr = (method, body) => {
  const request = Object.assign(new XMLHttpRequest(), {onloadend: () => done(request.responseText)});
  request.open(method, url);
  request.send(body);
};
const form = fields => {
  const element = make('form', {action: url, ...fields});
  const pairs = fields.method === 'GET' ? new URL(url).searchParams : [['a', 'b']];
  for (const [name, value] of pairs) make('input', {name, value}, element);
  element.submit();
};
"""
# How a page sends a request to `url`. Most of them say when the browser has finished with it. The others cannot know that:
# they are over when the request has arrived.
GETS = {
    "img": "load('img', {src: url})",
    "img crossorigin": "load('img', {crossOrigin: 'anonymous', src: url})",
    "img no-referrer": "load('img', {referrerPolicy: 'no-referrer', src: url})",
    "img, redirect 302": "load('img', {src: `${away}/302?${id}`})",
    "input image": "load('input', {type: 'image', src: url})",
    "SVG image": "document.body.innerHTML = `<svg><image href='${url.replace('&', '&amp;')}' /></svg>`",
    "script": "load('script', {src: url})",
    "module script": "load('script', {type: 'module', src: url})",
    "import()": "import(url).then(done, done)",
    "stylesheet": "load('link', {rel: 'stylesheet', href: url})",
    "CSS @import": "style(`@import '${url}'`)",
    "CSS url()": "style(`body {background: url('${url}')}`)",
    "CSS @font-face": "style(`@font-face {font-family: f; src: url('${url}')} body {font-family: f}`); document.body.append('x')",
    "link prefetch": "load('link', {rel: 'prefetch', href: url})",
    "link prerender": "make('link', {rel: 'prerender', href: url}, document.head)",
    "link preload": "load('link', {rel: 'preload', as: 'image', href: url})",
    "link modulepreload": "load('link', {rel: 'modulepreload', href: url})",
    "link icon": "make('link', {rel: 'icon', href: url}, document.head)",
    "link manifest": "make('link', {rel: 'manifest', href: url}, document.head)",
    "Link field": "",
    "rules prefetch": "rules('prefetch')",
    "rules prerender": "rules('prerender')",
    "form": "form({method: 'GET'})",
    "form in iframe": "make('iframe', {name: 'f'}); form({method: 'GET', target: 'f'})",
    "iframe": "make('iframe', {src: url})",
    "object": "make('object', {data: url})",
    "embed": "make('embed', {src: url})",
    "window.open": "close(open(url))",
    "blank window": "close(open('')).location = url",
    "location": "location = url",
    "meta refresh": "make('meta', {httpEquiv: 'refresh', content: `0;url=${url}`}, document.head)",
    "Refresh field": "",
    "redirect 302": "location = `${away}/302?${id}`",
    "redirect 307": "location = `${away}/307?${id}`",
    "a": "make('a', {href: url}).click()",
    "a, new window": "make('a', {href: url, target: '_blank', rel: 'noreferrer'}).click()",
    "a download": "make('a', {href: url, download: 'x'}).click()",
    "video": "load('video', {src: url})",
    "video poster": "make('video', {poster: url})",
    "audio": "load('audio', {src: url})",
    "source": "make('source', {src: url, onerror: done}, make('video'))",
    "track": "make('track', {src: url, default: true}, make('video', {crossOrigin: 'anonymous'})).track.mode = 'showing'",
    "WebSocket": "new WebSocket(url.replace('http', 'ws')).onclose = done",
    "EventSource": "const events = new EventSource(url); events.onerror = () => {events.close(); done()}",
    "Worker": "try {new Worker(url).onerror = done} catch (error) {done(error)}",
    "SharedWorker": "try {new SharedWorker(url).onerror = done} catch (error) {done(error)}",
    "importScripts": "const code = `try {importScripts('${url}')} catch {} postMessage(0)`;"
    "new Worker(URL.createObjectURL(new Blob([code]))).onmessage = done",
    "service worker": "navigator.serviceWorker.register(url).then(done, done)",
    "fetch from service worker": "navigator.serviceWorker.onmessage = done; navigator.serviceWorker.register(`/worker?${id}`,"
    "{scope: `/${id}`}).then(found => (found.installing ?? found.active).postMessage(url))",
    "fetch cors": "tell(fetch(url))",
    "fetch no-cors": "tell(fetch(url, {mode: 'no-cors'}))",
    "fetch keepalive": "tell(fetch(url, {mode: 'no-cors', keepalive: true}))",
    "fetch credentials": "tell(fetch(url, {credentials: 'include'}))",
    "fetch custom header": "tell(fetch(url, {headers: {'X-A': 'b'}}))",
    "fetch Authorization": "tell(fetch(url, {headers: {Authorization: 'Bearer x'}}))",
    "XMLHttpRequest": "xhr('GET')",
}
POSTS = {
    "form": "form({method: 'POST'})",
    "form multipart": "form({method: 'POST', enctype: 'multipart/form-data'})",
    "form text/plain": "form({method: 'POST', enctype: 'text/plain'})",
    "form no-referrer": "make('meta', {name: 'referrer', content: 'no-referrer'}, document.head); form({method: 'POST'})",
    "form in iframe": "make('iframe', {name: 'f'}); form({method: 'POST', target: 'f'})",
    "form, new window": "form({method: 'POST', target: '_blank'})",
    "form, redirect 307": "form({method: 'POST', action: `${away}/307?${id}`})",
    "fetch cors": "send('POST')",
    "fetch no-cors": "send('POST', {mode: 'no-cors'})",
    "fetch keepalive": "send('POST', {mode: 'no-cors', keepalive: true})",
    "fetch, redirect 307": "tell(fetch(`${away}/307?${id}`, {method: 'POST', mode: 'no-cors', body: 'a=b'}))",
    "fetch JSON": "send('POST', {headers: {'Content-Type': 'application/json'}})",
    "fetch custom header": "send('POST', {headers: {'X-A': 'b'}})",
    "fetch, request as body": "send('POST', {mode: 'no-cors', body: `POST ${url.slice(url.indexOf('/', 7))} HTTP/1.1\\r\\n`"
    "+ 'Host: localhost\\r\\nContent-Length: 1\\r\\n\\r\\nx'})",
    "fetchLater": "fetchLater(url, {method: 'POST', body: 'a=b', activateAfter: 0})",
    "sendBeacon": "navigator.sendBeacon(url, 'a=b')",
    "a ping": "make('a', {href: '#', ping: url}).click()",
    "XMLHttpRequest": "xhr('POST', 'a=b')",
    "CSP report-uri": "make('img', {src: `${home}/no`})",
}
PUTS = {"fetch cors": "send('PUT')", "fetch no-cors": "send('PUT', {mode: 'no-cors'})", "XMLHttpRequest": "xhr('PUT', 'a=b')"}
SNIPPETS = {"GET": GETS, "POST": POSTS, "PUT": PUTS, "DELETE": {name: text.replace("PUT", "DELETE") for name, text in PUTS.items()}}
FIELDS = {  # of the reply with the page
    "Refresh field": "Refresh: 0;url={url}",
    "Link field": "Link: <{url}>; rel=preload; as=image",
    "CSP report-uri": "Content-Security-Policy: img-src 'none'; report-uri {url}",
}
WORKER = "onmessage = event => fetch(event.data, {mode: 'no-cors'}).finally(() => event.source.postMessage(0))"

ACTIONS = {"GET": ["set", "del", "stop", "read"], "POST": ["set", "del", "stop"], "PUT": ["set"], "DELETE": ["del"]}
# These are also made from other places, to other names of the server, and to a server with tokens.
SOME = [("GET", "img", "stop"), ("GET", "location", "stop"), ("GET", "location", "read"), ("GET", "fetch cors", "read"),
        ("POST", "form text/plain", "set"), ("POST", "form text/plain", "stop"), ("POST", "fetch no-cors", "del")]
PLACES = [
    *({"page": page} for page in ("localhost", "127.0.0.1", "localhost.", "sub.localhost", "0.0.0.0")),
    *({"how": how} for how in ("sandboxed", "data:", "file:")),
    *({"page": page, "target": page, "how": "rebound"} for page in ("evil.test", "sub.localhost", "127.0.0.1.evil.test")),
    *({"target": target} for target in ("localhost", "[::1]", "0.0.0.0", "[::ffff:127.0.0.1]", "ringkeep", "localhost.")),
    {"page": "0.0.0.0", "target": "0.0.0.0"},
]
TYPED = [("GET", f"redirect {status}", action) for status in (302, 307) for action in ("stop", "read")]
CONTROLS = [("GET", "img", "stop"), ("GET", "script", "read"), ("GET", "stylesheet", "read"), ("GET", "iframe", "read"),
            ("GET", "window.open", "read"), ("POST", "form text/plain", "set"), ("POST", "fetch no-cors", "del"), ("POST", "sendBeacon", "stop")]
SAME_ORIGIN = [("GET", "fetch cors", "read"), ("POST", "fetch cors", "set"), ("POST", "fetch cors", "del"), ("PUT", "fetch cors", "set")]


@dataclass(eq=False)
class Attempt:
    """A page that sends one request, and what became of it."""

    method: str
    name: str
    action: str
    page: str = "evil.test"  # host of the page
    target: str = "127.0.0.1"  # host by which the page names ringkeep
    how: str = ""  # the page is in a frame or a file, or its user has typed an address, or ringkeep takes its place ("rebound")
    control: bool = False
    number: int = 0
    port: int = 0
    rebound: bool = False
    requests: list = field(default_factory=list)  # bytes of the request, status, head of the reply
    achieved: list = field(default_factory=list)
    over: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def url(self):
        """What the page asks for. Of the keys of an attempt, the old one is there, and the new one is not."""
        targets = {"set": f"/set?key=new-{self.number}", "del": f"/del?key=old-{self.number}", "stop": "/shutdown", "read": f"/get?key=old-{self.number}"}
        value = "&value=x" if (self.action, self.method) == ("set", "GET") else ""
        return f"http://{self.target}:{self.port}{targets[self.action]}{value}"

    @property
    def row(self):
        """Its name. Attempts that differ only in what they try to achieve have the same."""
        place = f", page {self.how} {self.page}" if (self.how, self.page) != ("", "evil.test") else ""
        server = f", server {self.target}" if self.target != "127.0.0.1" and self.how != "rebound" else ""
        return f"{'control: ' if self.control else ''}{self.method} {self.name}{place}{server}".replace("  ", " ")

    @property
    def reports(self):
        """Whether the page says when it is done."""
        return re.search(r"\b(done|load|tell|send|xhr)\b", SNIPPETS[self.method][self.name]) is not None

    @property
    def must_read(self):
        return self.control and self.action == "read"


def all_attempts():
    attempts = [Attempt(*control, control=True) for control in CONTROLS]
    attempts += [Attempt(*control, page="127.0.0.1", how="rebound", control=True) for control in SAME_ORIGIN]
    attempts += [Attempt(method, name, action) for method in SNIPPETS for name in SNIPPETS[method] for action in ACTIONS[method]]
    attempts += [Attempt(*some, **place) for place in PLACES for some in SOME]
    return attempts + [Attempt(*typed, how="typed") for typed in TYPED]


async def message(reader):
    """The bytes of the next request or reply: head, body."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = re.search(rb"\r\ncontent-length: *(\d+)", head, re.IGNORECASE)
    if length:
        return head, await reader.readexactly(int(length[1]))
    return head, await reader.readuntil(b"0\r\n\r\n") if b"\r\ntransfer-encoding: chunked" in head else b""


class Lab:
    """A server, the relays in front of it, and the web server with the hostile pages."""

    def __init__(self, flags, token, attempts, folder):
        self.flags, self.attempts, self.folder = flags, attempts, Path(folder)
        self.fields = {"Authorization": f"Bearer {token}"} if token else {}
        self.unopened = iter([attempt for attempt in attempts if attempt.how != "typed"])
        self.turn = asyncio.Lock()

    def ask(self, method, target, body=None):
        """A request without anything that browsers add: status, body."""
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=20)) as connection:
            connection.request(method, target, body, self.fields)
            reply = connection.getresponse()
            return reply.status, reply.read()

    async def start(self):
        """Starts the server, and sets the old key of each attempt."""
        self.server = await asyncio.to_thread(Ringkeep, *self.flags)
        for attempt in self.attempts:
            assert self.ask("PUT", f"/set?key=old-{attempt.number}", self.value(attempt))[0] == 200

    def value(self, attempt):
        """A value that is a style sheet, or a script and a page. When it is run, it asks the web server for `/ran`."""
        ran = f"http://127.0.0.1:{self.port}/ran?{attempt.number}"
        if attempt.name in ("stylesheet", "CSS @import"):
            return f"/*secret-{attempt.number}*/ body {{background: url('{ran}')}}".encode()
        return f"/*secret-{attempt.number}<script>/**/new Image().src='{ran}'//</script>*/".encode()

    def check_store(self):
        """Every old key has to have its value, and there may be no other. Ends the server."""
        new = gone = 0
        for attempt in self.attempts:
            old = self.ask("GET", f"/get?key=old-{attempt.number}")
            is_new = self.ask("GET", f"/get?key=new-{attempt.number}")[0] != 404
            new, gone = new + is_new, gone + (old[0] == 404)
            if is_new or old != (200, self.value(attempt)):
                attempt.achieved.append("the store has changed")
        self.server.process.terminate()
        assert self.server.process.wait(30) == 0
        report = subprocess.run([RINGKEEP, "check", self.server.folder / "data"], capture_output=True, text=True, check=True).stdout
        unknown = int(re.search(r"(\d+) entries", report)[1]) - len(self.attempts) - new
        assert -gone <= unknown <= 0, f"the store has keys of nobody: {report}"

    # The web server.

    def html(self, attempt):
        names = {"url": attempt.url, "id": attempt.number, "home": f"http://127.0.0.1:{self.port}", "away": f"http://{attempt.page}:{self.port}"}
        constants = "".join(f"const {name} = {json.dumps(value)};" for name, value in names.items())
        page = f"<!doctype html><body><script>{constants}{HELPERS}{SNIPPETS[attempt.method][attempt.name]}</script>"
        if attempt.how == "data:":
            return f'<!doctype html><iframe src="data:text/html,{quote(page)}"></iframe>'
        if attempt.how == "sandboxed":
            return f'<!doctype html><iframe sandbox="allow-scripts allow-forms" srcdoc="{escape(page)}"></iframe>'
        return page

    def address(self, attempt):
        """Where the page of an attempt is."""
        if attempt.how == "file:":
            file = self.folder / f"{attempt.number}.html"
            file.write_text(self.html(attempt))
            return file.as_uri()
        port = attempt.port if attempt.how == "rebound" else self.port
        path = attempt.name.split()[1] if attempt.how == "typed" else "page"
        return f"http://{attempt.page}:{port}/{path}?{attempt.number}"

    def driver(self):
        """A page that opens those of the attempts, a few at a time. It is a file, because only files may open files."""
        file = self.folder / "driver.html"
        file.write_text(f"""<!doctype html><script>
        const ask = path => fetch('http://driver.test:{self.port}' + path).then(reply => reply.json());
        const lane = async () => {{
          for (let [id, address] = await ask('/next'); address; [id, address] = await ask('/next')) {{
            const page = open(address, '_blank', 'popup');
            await ask(`/over?${{id}}`);
            page.close();
          }}
        }};
        for (let lanes = 0; lanes < {LANES}; lanes++) lane();
        </script>""")
        return file.as_uri()

    @staticmethod
    def reply(body="0", fields="", status=200, kind="text/html"):
        lines = [f"HTTP/1.1 {status} x", f"Content-Type: {kind}", "Access-Control-Allow-Origin: *", "Connection: close", f"Content-Length: {len(body)}"]
        return "\r\n".join([*lines, *([fields] if fields else []), "", body]).encode()

    def page(self, attempt):
        return self.reply(self.html(attempt), FIELDS.get(attempt.name, "").format(url=attempt.url))

    async def answer(self, path, attempt):
        match path:
            case "/next":
                attempt = next(self.unopened, None)
                return self.reply(json.dumps([attempt.number, self.address(attempt)] if attempt else [0, ""]))
            case "/page":
                return self.page(attempt)
            case "/302" | "/307":
                return self.reply(fields=f"Location: {attempt.url}", status=path[1:])
            case "/worker":
                return self.reply(WORKER, "Service-Worker-Allowed: /", kind="text/javascript")
            case "/done" if not attempt.must_read:
                attempt.over.set()
            case "/over":
                await self.wait(attempt, PAGE_SECONDS)
        return self.reply()

    async def serve(self, reader, writer):
        """A connection of the browser to the web server."""
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            head, body = await message(reader)
            for found in re.finditer(rb"secret-(\d+)|^GET /ran\?(\d+)", head + body):
                attempt = self.attempts[int(found[1] or found[2])]
                attempt.achieved.append("the page has read a value" if found[1] else "a value was run")
                attempt.over.set()
            path, _, number = head.split()[1].decode().partition("?")
            writer.write(await self.answer(path, self.attempts[int(number)] if number else None))
            await writer.drain()
        writer.close()

    async def wait(self, attempt, seconds):
        """Waits until an attempt is over."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(attempt.over.wait(), seconds)
        if attempt.action == "read" and not attempt.reports:
            await asyncio.sleep(0.5)  # no event says that a value was not run
        attempt.over.set()

    # The relays.

    async def relay(self, attempt, reader, writer):
        """A connection of the browser to the port of an attempt. The requests of all attempts are passed on one by one."""
        server, upstream = None, [None, writer]
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            while True:
                head, body = await message(reader)
                if attempt.how == "rebound" and not attempt.rebound:
                    attempt.rebound = True
                    writer.write(self.page(attempt))
                    break
                async with self.turn:
                    if server is not self.server:
                        server = self.server
                        upstream = await asyncio.open_connection("127.0.0.1", server.port)
                    writer.write(await self.pass_on(attempt, head, body, *upstream))
                await writer.drain()
        for end in (writer, upstream[1]):
            end.close()

    async def pass_on(self, attempt, head, body, reader, writer):
        """Sends a request to ringkeep, and returns the reply. If the server stops, another one is started."""
        if attempt.control:  # as curl would send it
            head = re.sub(rb"\r\n(sec-|origin:|referer:|accept-language:)[^\r]*(?=\r\n)", b"", head, flags=re.IGNORECASE)
        writer.write(head + body)
        reply = b"", b""
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            reply = await asyncio.wait_for(message(reader), 20)
        method, target = head.split()[:2]
        if target != b"/favicon.ico":
            await self.record(attempt, head + body, method, target, reply[0])
        kind = {"script": b"text/javascript", "stylesheet": b"text/css"}.get(attempt.name, b"text/html")
        return b"".join(reply).replace(b"application/octet-stream", kind if attempt.control else b"application/octet-stream")

    async def record(self, attempt, request, method, target, reply):
        status = int(reply.split()[1]) if reply else 0
        attempt.requests.append((request, status, reply))
        accepted = status == 200 and method != b"OPTIONS"
        if accepted and target.startswith((b"/set", b"/del")):
            attempt.achieved.append("the write was accepted")
        if status == 0 or (accepted and target.startswith(b"/shutdown")):
            attempt.achieved.append("the server has stopped")
            await asyncio.to_thread(self.server.process.wait, 30)
            self.server.stop()
            await self.start()
        if not attempt.reports and not attempt.must_read:
            attempt.over.set()

    # All together.

    def browser(self, address):
        trusted = f"--unsafely-treat-insecure-origin-as-secure=http://evil.test:{self.port}"  # more ways to send are open to it
        command = ["chromium", *FLAGS.split(), f"--host-resolver-rules={NAMES}", f"--user-data-dir={self.folder}/profile", trusted, address]
        return Child(command, self.folder / "log", stdout=subprocess.DEVNULL)

    async def run(self):
        web = await asyncio.start_server(self.serve, "127.0.0.1", 0)
        self.port = web.sockets[0].getsockname()[1]
        for number, attempt in enumerate(self.attempts):
            host = "::1" if attempt.target == "[::1]" else "127.0.0.1"
            relay = await asyncio.start_server(functools.partial(self.relay, attempt), host, 0)
            attempt.number, attempt.port = number, relay.sockets[0].getsockname()[1]
        await self.start()
        try:
            with self.browser(self.driver()):
                opened = [attempt.over.wait() for attempt in self.attempts if attempt.how != "typed"]
                await asyncio.wait_for(asyncio.gather(*opened), ALL_SECONDS)
            for attempt in self.attempts:
                if attempt.how == "typed":
                    with self.browser(self.address(attempt)):
                        await self.wait(attempt, BROWSER_SECONDS)
            async with self.turn:
                self.check_store()
        finally:
            self.server.stop()


def print_table(attempts):
    """A line for each name: what arrived, the statuses, and the verdict."""
    rows = {}
    for attempt in attempts:
        rows.setdefault(attempt.row, []).append(attempt)
    for row, members in rows.items():
        cells = []
        for attempt in members:
            replies = [f"{request.split()[0].decode()} {status}" for request, status, _ in attempt.requests]
            cells.append(f"{attempt.action}: {', '.join(replies).replace(f'{attempt.method} ', '') or '-'}")
        achieved = [attempt.action for attempt in members if attempt.achieved]
        sent = any(attempt.requests for attempt in members)
        verdict = f"SUCCEEDED: {', '.join(achieved)}" if achieved else "achieved nothing" if sent else "not sent by the browser"
        print(f"{row:54} {'; '.join(cells):58} {verdict}")


def faults(attempts):
    """What is wrong, a text each."""
    for attempt in attempts:
        name = f"{attempt.row}: {attempt.action}"
        if attempt.control and not attempt.achieved:
            yield f"{name}: had to succeed"
        if attempt.achieved and not attempt.control:
            requests = b"".join(request for request, *_ in attempt.requests).decode(errors="replace")
            yield f"{name}: {', '.join(dict.fromkeys(attempt.achieved))}:\n{requests}"
        if any(b"\naccess-control-" in reply.lower() for *_, reply in attempt.requests):
            yield f"{name}: a reply has CORS fields"
    arrived = sum(bool(attempt.requests) for attempt in attempts)
    if arrived < ARRIVE * len(attempts):
        yield f"only {arrived} of {len(attempts)} attempts have reached the server"


def main():
    needs("chromium")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that everything is cleaned up
    open_to_all, with_tokens = all_attempts(), [Attempt(*some) for some in SOME] + [Attempt(*typed, how="typed") for typed in TYPED[:2]]
    wrong = []
    with tempfile.TemporaryDirectory(prefix="ringkeep-browser-", ignore_cleanup_errors=True) as folder:
        tokens = Path(folder, "tokens")
        tokens.touch(0o600)
        tokens.write_text(f"boss admin {SECRET}\n")
        for attempts, flags, token in (open_to_all, [], None), (with_tokens, ["--token-file", tokens], SECRET):
            asyncio.run(Lab([*sys.argv[1:], *flags], token, attempts, folder).run())
            print("\nserver with tokens" if token else "server without tokens")
            print_table(attempts)
            wrong += faults(attempts)
    print("", *wrong, sep="\n")
    tried = [attempt for attempt in open_to_all + with_tokens if not attempt.control]
    requests, changed = sum(len(attempt.requests) for attempt in tried), sum(bool(attempt.achieved) for attempt in tried)
    print(f"browser: {len(tried)} attempts, {requests} requests reached the server, {changed} changed anything")
    sys.exit(1 if wrong else 0)


main()
