"""Shards from a server, a command or a gzip file give the same samples as plain local ones."""

import contextlib
import gzip
import http.server
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from pair_data import number_of_key, write_shards
from twinlens.data import remote, spool
from twinlens.data.decode import read_pair
from twinlens.data.pairs import BadSample, ShardSource
from twinlens.data.stream import PairStream
from twinlens.errors import ConfigError

COUNTS = [5, 6, 7]


class _Server(http.server.ThreadingHTTPServer):
    """Serves a folder; each of its faults makes one answer go wrong."""

    daemon_threads = True

    def __init__(self, folder):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder = folder
        self.faults = []  # "cut", "cut and changed", "busy", "slow": taken one an answer
        self.always_busy = None  # a path
        self.ranges = True
        self.etag = '"1"'
        self.requests = []  # (path, Range header)

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        server = self.server
        server.requests.append((self.path, self.headers.get("Range")))
        fault = server.faults.pop(0) if server.faults else None
        fault = "busy" if self.path == server.always_busy else fault
        path = server.folder / self.path.strip("/").partition("?")[0]
        if self.path == "/away":
            self.send_response(302)
            self.send_header("Location", "http://169.254.169.254/secret.tar")
            self.end_headers()
            return
        if fault == "busy" or not path.is_file():
            self.send_error(503 if fault == "busy" else 404)
            return
        data = path.read_bytes()
        start = 0
        wanted = self.headers.get("Range")
        if server.ranges and wanted and self.headers.get("If-Range") == server.etag:
            start = int(wanted.removeprefix("bytes=").rstrip("-"))
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        else:
            self.send_response(200)
        self.send_header("ETag", server.etag)
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        if fault == "cut and changed":
            server.etag = '"2"'
        if fault in ("cut", "cut and changed"):
            self.wfile.write(data[start : start + (len(data) - start) // 2])
            self.connection.close()
            return
        if fault == "slow":
            time.sleep(3)
        with contextlib.suppress(OSError):
            self.wfile.write(data[start:])

    def log_message(self, *_):
        pass


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setattr(remote, "FIRST_WAIT_SECONDS", 0.01)
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    write_shards(tmp_path / "www", COUNTS)
    with _Server(tmp_path / "www") as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def source_of(server, shards="{0000..0002}.tar", **options):
    options = {"allow_private_hosts": True, **options}
    return ShardSource(shards=(f"{server.url}/{shards}",), **options)


def numbers(stream):
    return [number_of_key(reference.key) for reference in stream]


def test_a_server_gives_the_samples_of_its_files(server):
    source = source_of(server)
    stream = PairStream([source], shuffle_buffer=0)
    pairs = [read_pair(reference, source) for reference in stream]
    assert [pair.captions for pair in pairs] == [(f"picture {n}",) for n in range(18)]
    assert stream.bad.total == 0


@pytest.mark.parametrize("ranges", [True, False])
def test_a_broken_transfer_goes_on_where_it_broke(server, ranges):
    server.ranges = ranges
    server.faults = ["cut", "cut", "busy", "cut"]
    assert numbers(PairStream([source_of(server, "0002.tar")], shuffle_buffer=0)) == list(
        range(11, 18)
    )
    size = (server.folder / "0002.tar").stat().st_size
    asked = [wanted for _, wanted in server.requests]
    assert asked[:2] == [None, f"bytes={size // 2}-"]
    # Without ranges the file comes from its beginning: half of it is the same half again.
    assert len(asked) == 5


def test_a_file_that_changes_in_between_is_not_patched_together(server):
    server.faults = ["cut and changed"]
    with pytest.raises(ConfigError, match="the file changed while it was being read"):
        numbers(PairStream([source_of(server, "0002.tar")], shuffle_buffer=0))
    assert len(server.requests) == 2


def test_a_server_that_stays_busy_or_has_no_such_shard_costs_only_that_shard(server):
    stream = PairStream([source_of(server, "{0000..0003}.tar")], shuffle_buffer=0)
    assert len(numbers(stream)) == 18
    assert stream.bad.first["unreachable shard"].endswith("0003.tar: unreachable shard (HTTP 404)")
    server.always_busy = "/0000.tar"
    stream = PairStream([source_of(server)])
    assert len(numbers(stream)) == 18 - 5
    assert "HTTP 503" in stream.bad.first["unreachable shard"]


def test_a_server_that_goes_silent_is_given_up(server, monkeypatch):
    monkeypatch.setattr(remote, "RETRIES", 0)
    server.faults = ["slow"]
    # Both: shards are fetched ahead, so either request may be the one that meets silence.
    sources = [source_of(server, name, timeout_seconds=0.2) for name in ("0000.tar", "0001.tar")]
    stream = PairStream(sources, shuffle_buffer=0)
    started = time.monotonic()
    with pytest.raises(ConfigError, match=r"Nothing can be read from .*timed out"):
        numbers(stream)
    assert time.monotonic() - started < 2.5


def test_this_machine_and_its_network_are_refused_unless_allowed(server):
    stream = PairStream(
        [source_of(server, allow_private_hosts=False), source_of(server)], shuffle_buffer=0
    )
    with pytest.raises(ConfigError, match="Nothing can be read from"):
        numbers(stream)
    assert "set allow_private_hosts to true" in stream.bad.first["unreachable shard"]
    assert {path for path, _ in server.requests} <= {"/0000.tar", "/0001.tar", "/0002.tar"}


@pytest.mark.parametrize(
    "url",
    [
        "http://localhost/a.tar",
        "http://[::1]/a.tar",
        "http://10.0.0.1/a.tar",
        "http://169.254.169.254/a.tar",
        "http://[::ffff:127.0.0.1]/a.tar",
        "http://2130706433/a.tar",  # 127.0.0.1 as one number
        "https://192.168.1.1/a.tar",
    ],
)
def test_no_spelling_of_a_private_address_is_connected_to(url, monkeypatch):
    def connect(*_, **__):
        raise AssertionError("a connection was tried")

    monkeypatch.setattr(remote.socket, "create_connection", connect)
    with (
        pytest.raises(OSError, match="address of this machine or its network"),
        remote.open_url(url, allow_private_hosts=False, timeout_seconds=1.0) as file,
    ):
        file.read(1)


def test_a_redirect_does_not_lead_inside_either(server, monkeypatch):
    real = remote._is_private
    monkeypatch.setattr(remote, "_is_private", lambda host: real(host) and host != "127.0.0.1")
    with (
        pytest.raises(OSError, match=r"169\.254\.169\.254 is an address of this machine"),
        remote.open_url(
            f"{server.url}/away", allow_private_hosts=False, timeout_seconds=1.0
        ) as file,
    ):
        file.read(1)


def test_fetched_shards_may_be_kept_for_later_runs(server, tmp_path):
    source = source_of(server, keep_folder=str(tmp_path / "kept"))
    first = numbers(PairStream([source], shuffle_buffer=0))
    assert len(server.requests) == len(list((tmp_path / "kept").glob("*.tar"))) == 3
    assert numbers(PairStream([source], shuffle_buffer=0)) == first
    assert len(server.requests) == 3
    assert not list((tmp_path / "kept").glob("*.part"))


def test_a_position_among_remote_shards_fetches_only_what_it_needs(server):
    source = source_of(server)
    stream = PairStream([source], seed=1, shuffle_buffer=2)
    expected = numbers(stream)
    stream = PairStream([source], seed=1, shuffle_buffer=2)
    seen = [number_of_key(next(stream).key) for _ in range(16)]
    state = json.loads(json.dumps(stream.state_dict()))
    server.requests.clear()
    resumed = PairStream([source], seed=1, shuffle_buffer=2)
    resumed.load_state_dict(state)
    assert seen + numbers(resumed) == expected
    assert len(server.requests) == 1


def test_a_command_gives_a_shard_when_it_is_allowed(tmp_path):
    (path,) = write_shards(tmp_path, [4])
    source = ShardSource(shards=(f"pipe:cat {path} | gzip",), allow_pipe=True)
    assert len(numbers(PairStream([source]))) == 4


def test_a_command_that_fails_is_an_unreachable_shard(tmp_path):
    (path,) = write_shards(tmp_path, [4])
    source = ShardSource(shards=(str(path), f"pipe:cat {path}; exit 3"), allow_pipe=True)
    stream = PairStream([source])
    assert len(numbers(stream)) == 4
    assert "the command ended with status 3" in stream.bad.first["unreachable shard"]


def test_a_gzip_file_cut_short_gives_what_could_be_unpacked(tmp_path):
    (path,) = write_shards(tmp_path, [200])
    squeezed = gzip.compress(path.read_bytes())
    (tmp_path / "a.tar.gz").write_bytes(squeezed[: len(squeezed) // 2])
    source = ShardSource(shards=(f"{tmp_path}/a.tar.gz",))
    stream = PairStream([source], shuffle_buffer=0)
    pairs = [read_pair(reference, source) for reference in stream]
    good = [pair for pair in pairs if not isinstance(pair, BadSample)]
    assert 20 < len(good) < 200 and len(pairs) - len(good) <= 1
    assert [pair.captions for pair in good] == [(f"picture {n}",) for n in range(len(good))]
    assert stream.bad.counts == {"damaged shard": 1}


def test_a_shard_that_unpacks_without_end_does_not_fill_the_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(spool, "LARGEST_SHARD_BYTES", 1 << 20)
    (tmp_path / "bomb.tar.gz").write_bytes(gzip.compress(bytes(8 << 20)))
    (path,) = write_shards(tmp_path, [4])
    stream = PairStream([ShardSource(shards=(str(path), f"{tmp_path}/bomb.tar.gz"))])
    assert len(numbers(stream)) == 4
    assert stream.bad.first["unreachable shard"].endswith("(larger than 0 GiB)")


def test_what_a_killed_process_fetched_is_removed_by_the_next(tmp_path):
    (path,) = write_shards(tmp_path, [4])
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress(path.read_bytes()))
    script = (
        "import sys, time\n"
        "from twinlens.data.pairs import ShardSource\n"
        "from twinlens.data.stream import PairStream\n"
        "stream = PairStream([ShardSource(shards=(sys.argv[1],))])\n"
        "print(next(stream).image.path, flush=True)\n"
        "time.sleep(60 if sys.argv[2] == 'wait' else 0)\n"
    )
    environment = {**os.environ, "TMPDIR": str(tmp_path)}

    def start(how):
        return subprocess.Popen(
            [sys.executable, "-c", script, f"{tmp_path}/a.tar.gz", how],
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )

    with start("wait") as killed:
        left = Path(killed.stdout.readline().strip())
        with start("end") as second:
            second.communicate()
        assert left.exists()  # its owner is alive
        killed.send_signal(signal.SIGKILL)
        killed.wait()
    assert left.exists()
    with start("end") as third:
        third.communicate()
    assert not left.exists()
    assert not list(tmp_path.glob(f"{spool.PREFIX}*"))
