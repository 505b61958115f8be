"""A TLS client that has its records in hand: it can cut them, and in TLS 1.3 forge them."""

import contextlib
import ctypes
import ctypes.util
import hmac
import re
import socket
import ssl
import tempfile
from pathlib import Path

PATIENCE = 20  # seconds; a server that takes longer counts as one that hangs

CHANGE_CIPHER_SPEC, ALERT, HANDSHAKE, DATA = 20, 21, 22, 23


def connect(port):
    stream = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)
    stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return stream


def send(stream, data, step=1 << 30):
    """Sends bytes, perhaps a few at a time. A server that has closed the connection already is no failure here."""
    with contextlib.suppress(ConnectionError):
        for at in range(0, len(data), step):
            stream.sendall(data[at:at + step])


def rest_of(stream):
    """Everything that arrives until the server ends the connection."""
    received = b""
    with contextlib.suppress(ConnectionError):
        while data := stream.recv(1 << 16):
            received += data
    return received


def record(kind, data, length=None):
    """A record that is not encrypted, perhaps with a wrong length in its head."""
    return bytes([kind, 3, 3]) + (len(data) if length is None else length).to_bytes(2, "big") + data


class Client:
    def __init__(self, port, context, host="localhost", session=None):
        self.socket = connect(port)
        self.arrived, self.leaving = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self.arrived, self.leaving, server_hostname=host, session=session)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()

    def hello(self):
        """The ClientHello, which is not sent."""
        with contextlib.suppress(ssl.SSLWantReadError):
            self.tls.do_handshake()
        return self.leaving.read()

    def again(self, action, step=1 << 30):
        """Does something of TLS, and exchanges bytes with the server until it is done."""
        while True:
            try:
                return action()
            except ssl.SSLWantReadError:
                send(self.socket, self.leaving.read(), step)
                if data := self.socket.recv(1 << 16):
                    self.arrived.write(data)
                else:
                    self.arrived.write_eof()

    def handshake(self, step=1 << 30):
        self.again(self.tls.do_handshake, step)
        send(self.socket, self.leaving.read(), step)
        return self

    def seal(self, data):
        """The records that carry these bytes."""
        self.tls.write(data)
        return self.leaving.read()

    def close_notify(self):
        """The record that says that this client sends no more."""
        with contextlib.suppress(ssl.SSLWantReadError):
            self.tls.unwrap()
        return self.leaving.read()

    def read(self):
        return self.again(lambda: self.tls.read(1 << 16))

    def replies(self, count=1):
        """The next replies, as pairs of status and body."""
        found, data = [], b""
        while len(found) < count:
            head, end, rest = data.partition(b"\r\n\r\n")
            length = int(re.search(rb"(?i)content-length: (\d+)", head)[1]) if end else 0
            if end and length <= len(rest):
                found.append((int(head[9:12]), rest[:length]))
                data = rest[length:]
            elif more := self.read():
                data += more
            else:
                raise RuntimeError(f"the connection ended after {len(found)} of {count} replies and {data[:200]!r}")
        assert not data, f"more than {count} replies: {data[:200]!r}"
        return found

    def ask(self, request, step=1 << 30):
        send(self.socket, self.seal(request), step)
        return self.replies()[0]

    def end(self):
        """How the server ends the connection: "close_notify", "cut", or the name of its alert. Replies do not matter."""
        try:
            while self.read():
                pass
        except (ssl.SSLEOFError, ConnectionError):
            return "cut"
        except ssl.SSLError as error:
            return error.reason or str(error)
        return "close_notify"


class Forger(Client):
    """A client of TLS 1.3 that makes its records itself once the handshake is over, from the secret that Python logs."""

    def __init__(self, port, context):
        with tempfile.NamedTemporaryFile() as secrets:
            context.keylog_filename = secrets.name
            super().__init__(port, context)
            self.handshake()
            found = re.search(r"CLIENT_TRAFFIC_SECRET_0 \w+ (\w+)", Path(secrets.name).read_text())
        assert self.tls.cipher()[0] == "TLS_AES_256_GCM_SHA384", self.tls.cipher()
        self.use(bytes.fromhex(found[1]))

    def use(self, secret):
        self.secret, self.sent = secret, 0
        self.key, self.nonce = self.derive("key", 32), self.derive("iv", 12)

    def derive(self, label, length):
        """HKDF-Expand-Label of RFC 8446, for outputs of one block."""
        label = b"tls13 " + label.encode()
        info = length.to_bytes(2, "big") + bytes([len(label)]) + label + b"\0"
        return hmac.digest(self.secret, info + b"\1", "sha384")[:length]

    def forge(self, kind, data):
        """A record of this kind. Kind 0 has none: it consists of padding."""
        plain = data + bytes([kind])
        head = bytes([DATA, 3, 3]) + (len(plain) + 16).to_bytes(2, "big")
        nonce = (int.from_bytes(self.nonce, "big") ^ self.sent).to_bytes(12, "big")
        self.sent += 1
        return head + aes_gcm(self.key, nonce, head, plain)

    def key_update(self):
        """A record that announces new keys and asks for new ones. This client uses its new key from then on."""
        update = self.forge(HANDSHAKE, b"\x18\0\0\1\1")
        self.use(self.derive("traffic upd", 48))
        return update


def aes_gcm(key, nonce, head, plain):
    """AES-256-GCM, which Python has not: `plain` encrypted, and a tag that covers `head` as well."""
    crypto = ctypes.CDLL(ctypes.util.find_library("crypto"))
    crypto.EVP_CIPHER_CTX_new.restype = crypto.EVP_aes_256_gcm.restype = ctypes.c_void_p
    context = ctypes.c_void_p(crypto.EVP_CIPHER_CTX_new())
    out, tag, count = ctypes.create_string_buffer(len(plain)), ctypes.create_string_buffer(16), ctypes.c_int()
    crypto.EVP_EncryptInit_ex(context, ctypes.c_void_p(crypto.EVP_aes_256_gcm()), None, key, nonce)
    crypto.EVP_EncryptUpdate(context, None, ctypes.byref(count), head, len(head))
    crypto.EVP_EncryptUpdate(context, out, ctypes.byref(count), plain, len(plain))
    crypto.EVP_EncryptFinal_ex(context, None, ctypes.byref(count))
    crypto.EVP_CIPHER_CTX_ctrl(context, 0x10, 16, tag)  # EVP_CTRL_AEAD_GET_TAG
    crypto.EVP_CIPHER_CTX_free(context)
    return out.raw + tag.raw
