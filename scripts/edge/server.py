"""A ringkeep server of this build, and the peers in front of it, each ended by id."""

import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
RINGKEEP = Path(os.environ.get("RINGKEEP", ROOT / "target/release/ringkeep"))


def needs(*tools):
    """Ends this script with status 0 and a message if a tool is missing: the script is skipped, and has not failed."""
    missing = [tool for tool in tools if not shutil.which(tool)]
    if missing:
        print(f"skipped: {', '.join(missing)} not installed")
        sys.exit(0)
    if not RINGKEEP.exists():
        sys.exit(f"{RINGKEEP} does not exist: build it with `cargo build --release`, or name another with RINGKEEP")


def free_port():
    """A port of 127.0.0.1 that nothing listens on at the moment."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


class Child:
    """A process of this script. It ends with the `with` block, and leaves its log if it did not end as it should."""

    def __init__(self, command, log, **options):
        self.log = Path(log)
        with self.log.open("wb") as file:
            self.process = subprocess.Popen([str(part) for part in command], stderr=file, **options)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()

    def alive(self):
        return self.process.poll() is None

    def stop(self):
        if self.alive():
            self.process.terminate()
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        return self.process.returncode

    def wait_for_port(self, port):
        for _ in range(400):
            if not self.alive():
                raise RuntimeError(f"{self.process.args[0]} ended with {self.process.returncode}; see {self.log}")
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
            except OSError:
                time.sleep(0.05)
            else:
                return
        raise RuntimeError(f"{self.process.args[0]} does not listen on port {port}; see {self.log}")


class Ringkeep(Child):
    """A server with a new store in a temporary folder, which goes away with it."""

    def __init__(self, *flags, listen="127.0.0.1:0", prefix=()):
        self.folder = Path(tempfile.mkdtemp(prefix="ringkeep-edge-"))
        command = [*prefix, RINGKEEP, "--data-dir", self.folder / "data", "--listen", listen, *flags]
        super().__init__(command, self.folder / "log", stdout=subprocess.PIPE, text=True)
        line = self.process.stdout.readline()
        found = re.search(r"(https?)://(\S+):(\d+)", line)
        if not found:
            raise RuntimeError(f"ringkeep did not start; its log says:\n{self.log.read_text()}")
        self.url, self.port = found[0], int(found[3])

    def stop(self):
        status = super().stop()
        if status == 0:
            shutil.rmtree(self.folder, ignore_errors=True)
        else:
            print(f"ringkeep ended with {status}; its data and log are in {self.folder}", file=sys.stderr)
        return status
