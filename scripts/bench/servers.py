"""The servers that are compared. All servers that write have the same durability."""

import json
import re
import signal
import socket
import ssl
import subprocess
import time
import urllib.request

from host import RINGKEEP, SERVER, Process, fresh

VALUE = "v" * 100


def listens(port):
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


class Certificate:
    """A certificate that trusts itself, as most servers have them: ECDSA on P-256."""

    def __init__(self):
        folder = fresh("certificate")
        self.chain, self.key = folder / "chain.pem", folder / "key.pem"
        subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
                        "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", self.key, "-out", self.chain],
                       check=True, capture_output=True)


class Peer(Process):
    """A server on a fixed port. Nothing else may listen on that port, or it would be measured instead."""

    def __init__(self, port, command, log):
        if listens(port):
            raise RuntimeError(f"another process listens on port {port} and would be measured instead: stop it first")
        super().__init__(SERVER, command, log)
        for _ in range(200):
            if self.child.poll() is not None:
                raise RuntimeError(f"{command[0]} ended with {self.child.returncode}; see {log}")
            if listens(port):
                return
            time.sleep(0.05)
        raise RuntimeError(f"{command[0]} does not listen on port {port}; see {log}")


class Ringkeep(Process):
    def __init__(self, *flags, folder=None, cpus=SERVER, threads=1):
        self.folder = folder or fresh("ringkeep")
        self.flags = flags
        command = [RINGKEEP, "serve", "--listen", "127.0.0.1:0", "--data-dir", self.folder, "--threads", threads, *flags]
        super().__init__(cpus, command, self.folder.parent / "ringkeep.log")
        line = self.child.stdout.readline()
        found = re.search(r"(https?)://(\S+):(\d+)", line)
        if not found:
            raise RuntimeError(f"ringkeep did not start: {line!r}; see {self.log}")
        self.address, self.port, self.url = f"{found[2]}:{found[3]}", int(found[3]), found[0]

    def stop(self, how=signal.SIGTERM):
        status = super().stop(how)
        if how == signal.SIGTERM and status != 0:
            raise RuntimeError(f"ringkeep ended with {status}; see {self.log}")
        return status


class Redis(Peer):
    """`appendfsync always`, no snapshots: an acknowledged write is on disk, as with ringkeep's default."""

    def __init__(self, port=16379):
        self.port = port
        folder = fresh("redis")
        settings = {"port": port, "bind": "127.0.0.1", "dir": folder, "save": "", "daemonize": "no",
                    "appendonly": "yes", "appendfsync": "always", "auto-aof-rewrite-percentage": 0}
        flags = [word for name, value in settings.items() for word in (f"--{name}", value)]
        super().__init__(port, ["redis-server", *flags], folder.parent / "redis.log")


class Webdis(Peer):
    """HTTP in front of a Redis server, on the same processor."""

    def __init__(self, redis, port=17379):
        folder = fresh("webdis")
        settings = {"redis_host": "127.0.0.1", "redis_port": redis.port, "http_host": "127.0.0.1", "http_port": port,
                    "threads": 1, "daemonize": False, "database": 0, "verbosity": 0,
                    "logfile": str(folder / "log"), "pool_size": 20}
        (folder / "webdis.json").write_text(json.dumps(settings))
        super().__init__(port, ["webdis", folder / "webdis.json"], folder.parent / "webdis.log")
        self.redis = redis
        self.url = f"http://127.0.0.1:{port}"
        reply = json.loads(urllib.request.urlopen(f"{self.url}/GET/key:{0:012}", timeout=5).read())
        assert len(reply["GET"]) == 100, "Webdis does not return the value that redis-benchmark wrote"

    def cpu_seconds(self):
        """The Redis server does half of the work, so its processor time counts too."""
        return super().cpu_seconds() + self.redis.cpu_seconds()


class Nginx(Peer):
    """Returns the reply of a get without looking anything up: this is the cost of HTTP, or of HTTPS with a certificate."""

    def __init__(self, port=18081, certificate=None):
        folder = fresh("nginx")
        tls = certificate and f"ssl_certificate {certificate.chain}; ssl_certificate_key {certificate.key};"
        (folder / "nginx.conf").write_text(f"""
            daemon off; worker_processes 1; pid {folder}/pid; error_log {folder}/error.log;
            events {{ worker_connections 4096; }}
            http {{
                access_log off; keepalive_requests 1000000000; client_body_temp_path {folder}; proxy_temp_path {folder};
                fastcgi_temp_path {folder}; uwsgi_temp_path {folder}; scgi_temp_path {folder};
                server {{ listen 127.0.0.1:{port}{' ssl' if tls else ''}; {tls or ''} location / {{ return 200 "{VALUE}"; }} }}
            }}""")
        super().__init__(port, ["nginx", "-c", folder / "nginx.conf"], folder.parent / "nginx.log")
        self.url = f"{'https' if tls else 'http'}://127.0.0.1:{port}"
        trust = certificate and ssl.create_default_context(cafile=certificate.chain)
        reply = urllib.request.urlopen(self.url, timeout=5, context=trust).read().decode()
        assert reply == VALUE, "nginx does not reply with the value of 100 bytes"
