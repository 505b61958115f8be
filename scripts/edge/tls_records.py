"""Clients that cut, forge or flood records, or take their time."""

import os
import re
import select
import socket
import time

from tls_client import ALERT, CHANGE_CIPHER_SPEC, DATA, HANDSHAKE, PATIENCE, Client, connect, record, rest_of, send
from tls_common import GET, LIVE, SET_HEAD, Edge, check, until

HANDSHAKE_SECONDS = 10  # how long a handshake may take


def ends_of_connections(edge):
    for how in ("by TCP", "by close_notify", "by both"):
        with check(f"a client that ends its own direction ({how}) gets the reply") as notes, edge.client() as client:
            send(client.socket, client.seal(SET_HEAD % (b"half", 4) + b"done"))
            if how != "by TCP":
                send(client.socket, client.close_notify())
            if how != "by close_notify":
                client.socket.shutdown(socket.SHUT_WR)
            assert client.replies() == [(200, b"OK\n")]
            notes.append(f"then {client.end()}")
    begun = SET_HEAD % (b"cut", 100_000) + b"x" * 90_000
    chunked = b"POST /set?key=cut HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n"
    for name, sent, last in (("a record that is cut", begun, lambda client: client.seal(b"x" * 10_000)[:-20]),
                             ("close_notify in a body", begun, Client.close_notify),
                             ("close_notify before the last chunk", chunked, Client.close_notify),
                             ("the end of TCP in a body", begun, lambda _: b"")):
        with check(f"{name}: nothing is stored, and others do not notice"), edge.client() as client, edge.client() as other:
            send(client.socket, client.seal(sent) + last(client))
            client.socket.shutdown(socket.SHUT_WR)
            client.end()
            assert edge.value(b"cut")[0] == 404 and other.ask(LIVE)[0] == 200


def records_of_all_sizes(edge):
    for name, context in (("1.2", edge.old), ("1.3", edge.modern)):
        with check(f"TLS {name}, handshake and request byte by byte: served"), Client(edge.port, context) as client:
            assert client.handshake(step=1).ask(SET_HEAD % (b"bytes", 5) + b"value", step=1) == (200, b"OK\n")
            assert client.ask(GET % b"bytes", step=1) == (200, b"value")
        with check(f"TLS {name}, a request in records of one byte: served"), edge.client(context) as client:
            request = SET_HEAD % (b"ones", 300) + b"v" * 300
            send(client.socket, b"".join(client.seal(bytes([byte])) for byte in request))
            assert client.replies() == [(200, b"OK\n")] and client.ask(GET % b"ones") == (200, b"v" * 300)
        with check(f"TLS {name}, 200 requests in one record: answered in order"), edge.client(context) as client:
            requests = b"".join(GET % b"number%d" % number if number % 2 else SET_HEAD % (b"number%d" % (number + 1), 3) + b"%03d" % number
                                for number in range(200))
            send(client.socket, client.seal(requests))
            expected = [(200, b"%03d" % (number - 1)) if number % 2 else (200, b"OK\n") for number in range(200)]
            assert client.replies(200) == expected
    with check("a ClientHello in records of one byte: served"), Client(edge.port, edge.modern) as client:
        send(client.socket, b"".join(record(HANDSHAKE, bytes([byte])) for byte in client.hello()[5:]))
        assert client.handshake().ask(LIVE)[0] == 200


def before_the_handshake(edge):
    warning = record(ALERT, b"\x01\x5a")
    long_hello = b"\x01\x01\0\0\x03\x03" + b"h" * 65_530
    fragments = b"".join(record(HANDSHAKE, long_hello[at:at + 16_384]) for at in range(0, len(long_hello), 16_384))
    for name, sent, alerts in (
        ("a record of 2^14 + 2,049 bytes", record(HANDSHAKE, b"\x01" * 30_000, 2**14 + 2049), (22, 50)),
        ("a record of 65,535 bytes", record(HANDSHAKE, b"\x01" * 65_535), (22, 50)),
        ("an empty handshake record", record(HANDSHAKE, b""), (10, 50)),
        ("50 empty records of data", record(DATA, b"") * 50, (10, 50)),
        ("a record of kind 99", record(99, b"hello"), (10, 50)),
        ("4 KiB of zeros", bytes(4096), (10, 50, 70)),
        ("4 KiB of noise", os.urandom(4096), None),
        ("data instead of a ClientHello", record(DATA, LIVE), (10, 50)),
        ("a flood of ChangeCipherSpec", record(CHANGE_CIPHER_SPEC, b"\x01") * 10_000, (10, 50)),
        ("ChangeCipherSpec after the ClientHello, 10,000 times", edge.hello + record(CHANGE_CIPHER_SPEC, b"\x01") * 10_000, None),
        ("a flood of alerts", warning * 10_000, None),
        ("a ClientHello of 64 KiB in fragments", fragments, None),
        ("a handshake message of 16 MiB - 1", record(HANDSHAKE, b"\x01\xff\xff\xff" + b"h" * 16_000), None),
        ("a ClientHello twice", edge.hello * 2, None),
    ):
        with check(f"before the handshake, {name}: the connection ends, and the server lives") as notes:
            with connect(edge.port) as stream:
                send(stream, sent)
                received = rest_of(stream)
            alert = received[-1] if received[:1] == bytes([ALERT]) else None
            assert alerts is None or alert in alerts, f"alert {alert} in {received!r}"
            notes.append(f"alert {alert}" if alert is not None else f"{len(received)} bytes")
            edge.lives()


def after_the_handshake(edge):
    overflow, unexpected, any_end = "RECORD_OVERFLOW|DECODE_ERROR|BAD_RECORD_MAC", "UNEXPECTED_MESSAGE|DECODE_ERROR", "cut|ALERT"
    for name, forge, expected in (
        ("a record of 2^14 + 257 bytes", lambda _: record(DATA, bytes(30_000), 2**14 + 257), overflow),
        ("a record of 2^14 + 2,049 bytes", lambda _: record(DATA, bytes(30_000), 2**14 + 2049), overflow),
        ("2^14 + 1 bytes in a record", lambda client: client.forge(DATA, bytes(2**14 + 1)), "RECORD_OVERFLOW"),
        ("2^14 bytes and padding in a record", lambda client: client.forge(0, bytes(2**14) + b"\x17"), "RECORD_OVERFLOW"),
        ("a record without bytes", lambda _: record(DATA, b""), "BAD_RECORD_MAC|DECODE_ERROR"),
        ("a record of kind 99", lambda _: record(99, b"x" * 40), unexpected),
        ("a record with kind 99 inside", lambda client: client.forge(99, b"x"), unexpected),
        ("a record of padding only", lambda client: client.forge(0, bytes(40)), any_end),
        ("4 KiB of zeros", lambda _: bytes(4096), "ALERT"),
        ("noise in a record", lambda _: record(DATA, os.urandom(300)), "BAD_RECORD_MAC"),
        ("the same record twice", lambda client: client.seal(LIVE) * 2, "BAD_RECORD_MAC"),
        ("ChangeCipherSpec, 10,000 times", lambda _: record(CHANGE_CIPHER_SPEC, b"\x01") * 10_000, unexpected),
        ("10,000 empty records", lambda client: b"".join(client.forge(DATA, b"") for _ in range(10_000)), any_end),
        ("1,000 alerts", lambda client: b"".join(client.forge(ALERT, b"\x01\x5a") for _ in range(1_000)), any_end),
        ("1,000 new keys", lambda client: b"".join(client.key_update() for _ in range(1_000)), any_end),
        ("a second ClientHello", lambda client: client.forge(HANDSHAKE, edge.hello[5:]), "ALERT"),
        ("a handshake message that never ends", lambda client: b"".join(
            client.forge(HANDSHAKE, (b"" if at else b"\x18\xff\xff\xff") + bytes(16_000)) for at in range(10)), any_end),
    ):
        with check(f"after the handshake, {name}: the connection ends, and the server lives") as notes:
            with edge.forger() as client:
                send(client.socket, forge(client))
                end = client.end()
            assert re.search(expected, end), end
            notes.append(end)
            edge.lives()
    with check("20 empty records before each of three requests: served"), edge.forger() as client:
        for _ in range(3):
            send(client.socket, b"".join(client.forge(DATA, b"") for _ in range(20)) + client.forge(DATA, LIVE))
            assert client.replies()[0][0] == 200
    with check("new keys before each of 100 requests that are sent together: served"), edge.forger() as client:
        send(client.socket, b"".join(client.key_update() + client.forge(DATA, LIVE) for _ in range(100)))
        assert [status for status, _ in client.replies(100)] == [200] * 100


def slow_handshakes(edge):
    with check("200 handshakes that are never finished: others are served, and each ends after 10 s") as notes:
        begin, slowest, ends = time.monotonic(), 0, []
        waiting = [connect(edge.port) for _ in range(200)]
        for at, stream in enumerate(waiting):
            send(stream, edge.hello[:at % 100])  # some send nothing at all
        slow, trickle = waiting[20], iter(edge.hello[20:])
        while waiting:
            assert time.monotonic() - begin < HANDSHAKE_SECONDS + PATIENCE, f"{len(waiting)} connections are still open"
            for stream in select.select(waiting, [], [], 0.2)[0]:
                rest_of(stream)
                stream.close()
                waiting.remove(stream)
                ends.append(time.monotonic() - begin)
            if slow in waiting:
                send(slow, bytes([next(trickle)]))
            asked = time.monotonic()
            edge.lives()
            slowest = max(slowest, time.monotonic() - asked)
        assert HANDSHAKE_SECONDS - 1.5 < ends[0] and ends[-1] < HANDSHAKE_SECONDS + 5, ends
        notes.append(f"after {ends[0]:.1f} to {ends[-1]:.1f} s; slowest request of others {slowest * 1000:.0f} ms")
    with check("the log says that handshakes were too slow"):
        until(lambda: re.search(r"connections were refused, or ended.*handshake", edge.server.log.read_text()))


def slow_requests(certificates):
    with certificates.server("--head-timeout", "1s", "--body-timeout", "1s") as server:
        edge = Edge(certificates, server)
        for name, first, rest in (("head", b"GET /livez HTTP/1.1\r\nHost: ", b"h"), ("body", SET_HEAD % (b"slow", 1_000_000), b"b")):
            with check(f"a {name} that trickles in records of one byte: 408 after a second or so") as notes, edge.client() as client:
                client.ask(LIVE)  # whatever belongs to the handshake has arrived
                begin = time.monotonic()
                send(client.socket, client.seal(first))
                while not select.select([client.socket], [], [], 0.1)[0]:
                    send(client.socket, client.seal(rest))
                    assert time.monotonic() - begin < PATIENCE, "it is waited for"
                assert client.replies()[0][0] == 408
                notes.append(f"{time.monotonic() - begin:.1f} s")
