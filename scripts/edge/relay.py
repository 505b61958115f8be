"""A relay between a proxy and a server, which records both directions, and counts the requests as each side sees them.

The proxy adds the field MARK, whose name no client can guess, to each request that it forwards. So the fields are the
proxy's count of the requests, whatever is in their heads and bodies. The replies are the server's count.
"""

import re
import secrets
import socket
import threading
from contextlib import suppress

PATIENCE = 10  # Seconds.
MARK = f"x-forward-{secrets.token_hex(8)}"


def value_of(head, name):
    found = re.search(rb"(?im)^" + name + rb":[ \t]*(.*?)[ \t]*\r?$", head)
    return found[1] if found else b""


def split_chunks(data):
    """A chunked body and what follows it, which is None if the body does not end."""
    body = b""
    while True:
        line, end, data = data.partition(b"\r\n")
        size = re.match(rb"[0-9a-fA-F]+", line)
        if not end or not size:
            return body, None
        size = int(size[0], 16)
        if size == 0:
            break
        if len(data) < size + 2:
            return body, None
        body, data = body + data[:size], data[size + 2 :]
    while line and end:  # Trailers, and the empty line.
        line, end, data = data.partition(b"\r\n")
    return body, data if end else None


def split_body(head, data):
    if value_of(head, b"transfer-encoding").lower().endswith(b"chunked"):
        return split_chunks(data)
    length = value_of(head, b"content-length")
    length = int(length) if length.isdigit() else 0
    return data[:length], data[length:] if length <= len(data) else None


def requests(data):
    """The heads and bodies of the requests, and whether the last request is complete."""
    found = []
    while data:
        head, end, data = data.partition(b"\r\n\r\n")
        if not end:
            return found, False
        body, data = split_body(head, data)
        found.append((head, body))
        if data is None:
            return found, False
    return found, True


def answers(data, heads=(), ended=False):
    """The statuses of the final replies; 0 stands for bytes that are no reply. With `ended` the last one may be cut."""
    statuses = []
    while data:
        head, end, data = data.partition(b"\r\n\r\n")
        found = re.match(rb"HTTP/1\.[01] (\d\d\d)", head)
        if not found:
            return [*statuses, 0]
        if not end:
            return statuses
        if found[1] < b"200":
            continue
        no_body = len(statuses) < len(heads) and heads[len(statuses)].startswith(b"HEAD ")
        if not no_body and not data.startswith(b"HTTP/1."):
            framed = value_of(head, b"content-length") or value_of(head, b"transfer-encoding")
            data = split_body(head, data)[1] if framed else b""
        if data is not None or ended:
            statuses.append(int(found[1]))
    return statuses


class Connection:
    """What a proxy and a server have sent each other on a connection since the case began."""

    def __init__(self, sent=b"", answered=b""):
        self.sent, self.answered, self.directions = bytearray(sent), bytearray(answered), 2

    def read(self):
        """How many requests the proxy has forwarded, the statuses of the answers, whether the proxy has sent only a part
        of the last request and that has no answer, and whether nothing is in flight."""
        found, complete = requests(bytes(self.sent))
        forwarded = self.sent.lower().count(MARK.encode())
        statuses = answers(bytes(self.answered), [head for head, _ in found])
        unfinished = not complete and forwarded == len(statuses) + 1
        return forwarded, statuses, unfinished, complete and forwarded == len(statuses)

    def is_settled(self):
        return not self.directions or self.read()[3]

    def marked(self):
        return [one for one in requests(bytes(self.sent))[0] if MARK.encode() in one[0].lower()]

    def disagreement(self):
        """What is wrong, if the two sides do not count the same. A complete request has one answer, which is not that the
        server has waited in vain for more of the request."""
        forwarded, statuses, unfinished, settled = self.read()
        if unfinished or (forwarded == len(statuses) and not (settled and 408 in statuses)):
            return None
        return (f"the proxy forwarded {forwarded}, {len(statuses)} were answered: {statuses}\n"
                f"    arrived: {bytes(self.sent)!r:.1500}\n    answers: {bytes(self.answered)!r:.1500}")


def receive(peer):
    try:
        return peer.recv(1 << 16)
    except OSError:
        return b""


class Relay:
    """Passes on what a proxy and the server at the port `target` send each other."""

    def __init__(self, target):
        self.target, self.connections, self.total = target, [], 0
        self.changed = threading.Condition()
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            proxy, _ = self.listener.accept()
            server, connection = socket.create_connection(("127.0.0.1", self.target)), Connection()
            with self.changed:
                self.connections.append(connection)
                self.total += 1
            for source, sink, record in ((proxy, server, connection.sent), (server, proxy, connection.answered)):
                source.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                threading.Thread(target=self.pass_on, args=(connection, source, sink, record), daemon=True).start()

    def pass_on(self, connection, source, sink, record):
        while part := receive(source):
            with self.changed:
                record += part
                self.changed.notify_all()
            with suppress(OSError):  # The record goes on when the other side is gone.
                sink.sendall(part)
        with suppress(OSError):
            sink.shutdown(socket.SHUT_WR)
        with self.changed:
            connection.directions -= 1
            self.changed.notify_all()

    def begin(self):
        """Forgets what was recorded."""
        with self.changed:
            self.connections = [one for one in self.connections if one.directions]
            for one in self.connections:
                one.sent.clear()
                one.answered.clear()

    def settle(self):
        """Waits until every connection is closed, or has an answer to each request. Returns whether that came."""
        with self.changed:
            return self.changed.wait_for(lambda: all(one.is_settled() for one in self.connections), PATIENCE)
