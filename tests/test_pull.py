"""Pulling from a hub on this machine, faults included. Run with: pytest tests/test_pull.py"""

import hashlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import fake_hub
from fake_hub import FakeHub, drop_after, redirect, status
from twinlens.errors import CheckpointMismatch, ConfigError, ModelNotFound, TwinlensError
from twinlens.hub import cache, connection, download, pull
from twinlens.hub.registry import PublishedModel

WEIGHTS = random.Random(0).randbytes(3_000_000)
REPO = {
    "config.json": b'{"model_type": "clip"}',
    "preprocessor_config.json": b"{}",
    "tokenizer.json": b"{}",
    "model.safetensors": WEIGHTS,
    "pytorch_model.bin": b"the same again",
    "README.md": b"not needed",
}
PROXIES = ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")


@pytest.fixture
def hub(monkeypatch, tmp_path):
    for name in (*PROXIES, "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(connection, "FIRST_WAIT_SECONDS", 0.001)
    monkeypatch.setenv("TWINLENS_CACHE", str(tmp_path / "cache"))
    with FakeHub() as hub:
        hub.repos["maker/clip"] = dict(REPO)
        hub.small = {"config.json", "preprocessor_config.json", "tokenizer.json"}
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        yield hub


def fetched(folder):
    return {path.name for path in folder.iterdir()} - {download.LOCK_NAME, cache.MANIFEST_NAME}


def test_a_repository_becomes_a_folder_with_one_set_of_weights(hub):
    heard = []
    folder = pull.pull("hf:maker/clip", progress=lambda *numbers: heard.append(numbers))
    expected = {"config.json", "preprocessor_config.json", "tokenizer.json", "model.safetensors"}
    assert fetched(folder) == expected
    assert all((folder / name).read_bytes() == REPO[name] for name in expected)
    assert folder == cache.pulled_folder("hf:maker/clip")
    assert cache.pulled_names() == ["hf:maker/clip"]
    total = sum(len(REPO[name]) for name in expected)
    assert heard[-1] == (total, total)
    assert heard == sorted(heard)
    assert cache.read_manifest(folder)["revision"] == fake_hub.COMMIT


def test_files_come_from_the_commit_that_was_listed(hub):
    pull.pull("hf:maker/clip@v1.0")
    paths = [path for path, _ in hub.requests]
    assert paths[0] == "/api/models/maker/clip/tree/v1.0"
    assert paths[1] == f"/maker/clip/resolve/{fake_hub.COMMIT}/preprocessor_config.json"


def test_what_is_there_is_not_asked_for_again(hub):
    folder = pull.pull("hf:maker/clip")
    hub.requests.clear()
    assert pull.pull("hf:maker/clip") == folder
    assert hub.requests == []


def test_a_dropped_connection_is_continued_where_it_broke(hub):
    hub.next["model.safetensors"] = [drop_after(1_000_000), drop_after(500_000)]
    folder = pull.pull("hf:maker/clip")
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    first, second, third = hub.asked_for("model.safetensors")
    etag = f'"{hashlib.sha256(WEIGHTS).hexdigest()}"'
    assert "Range" not in first
    assert (second["Range"], second["If-Range"]) == ("bytes=1000000-", etag)
    assert third["Range"] == "bytes=1500000-"


def test_a_connection_that_keeps_dropping_is_given_up_and_kept(hub):
    hub.next["model.safetensors"] = [drop_after(700_000)] + [drop_after(0)] * 9
    with pytest.raises(TwinlensError, match=r"^127\.0\.0\.1:\d+ cannot be reached \(the connec"):
        pull.pull("hf:maker/clip", retries=3)
    folder = cache.model_folder("hf:maker/clip")
    assert (folder / "model.safetensors.partial").stat().st_size == 700_000
    assert cache.pulled_folder("hf:maker/clip") is None
    hub.next.clear()
    pull.pull("hf:maker/clip")
    assert hub.asked_for("model.safetensors")[-1]["Range"] == "bytes=700000-"


def test_a_slow_line_that_drops_often_still_arrives(hub, monkeypatch):
    monkeypatch.setattr(download, "PROGRESS_BYTES", 100_000)
    hub.next["model.safetensors"] = [drop_after(150_000)] * 15
    folder = pull.pull("hf:maker/clip", retries=2)
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS


def test_a_server_without_ranges_sends_it_all_again(hub):
    hub.next["model.safetensors"] = [drop_after(1_000_000), fake_hub.without_ranges]
    folder = pull.pull("hf:maker/clip")
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS


def test_a_file_that_changed_between_two_parts_is_not_patched_together(hub):
    hub.next["model.safetensors"] = [drop_after(1_000_000), fake_hub.other_version]
    folder = pull.pull("hf:maker/clip")
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    # Three requests: the other version's ETag was noticed before its bytes were kept.
    assert len(hub.asked_for("model.safetensors")) == 3


def test_a_download_that_lacked_only_its_check_is_not_repeated(hub):
    folder = cache.model_folder("hf:maker/clip")
    folder.mkdir(parents=True)
    (folder / "model.safetensors.partial").write_bytes(WEIGHTS)
    pull.pull("hf:maker/clip")
    assert hub.asked_for("model.safetensors") == []


def test_a_damaged_file_is_fetched_once_more(hub):
    hub.next["model.safetensors"] = [fake_hub.damaged]
    folder = pull.pull("hf:maker/clip")
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])  # SHA-256; git's SHA-1
def test_a_file_damaged_twice_is_named_and_nothing_of_it_is_kept(hub, name):
    hub.next[name] = [fake_hub.damaged] * 2
    sentence = rf"^{name} arrived from 127\.0\.0\.1:\d+ damaged, twice: .* Nothing of it was kept"
    with pytest.raises(CheckpointMismatch, match=sentence):
        pull.pull("hf:maker/clip")
    folder = cache.model_folder("hf:maker/clip")
    assert not {name, f"{name}.partial", f"{name}.partial.etag"} & fetched(folder)


def test_a_server_that_is_busy_is_asked_again(hub):
    hub.next["list"] = [status(503), status(429, {"Retry-After": "0"})]
    hub.next["model.safetensors"] = [status(500), status(502)]
    assert "model.safetensors" in fetched(pull.pull("hf:maker/clip"))


def test_a_server_that_stays_busy_is_given_up(hub):
    hub.next["model.safetensors"] = [status(503)] * 9
    with pytest.raises(
        TwinlensError, match=r"is busy or broken \(HTTP 503\)\. What was fetched .* later\.$"
    ):
        pull.pull("hf:maker/clip", retries=2)
    assert len(hub.asked_for("model.safetensors")) == 3


def test_a_server_that_says_nothing_is_given_up_in_time(hub):
    hub.next["model.safetensors"] = [fake_hub.silent] * 3
    with pytest.raises(TwinlensError, match=r"did not answer in time\. .* --model FOLDER\.$"):
        pull.pull("hf:maker/clip", timeout_seconds=0.1, retries=1)


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        (status(404), r"has no maker/clip\. Check the name\. If it is private, set HF_TOKEN\.$"),
        (status(401, {"X-Error-Code": "RepoNotFound"}), r"has no maker/clip\. Check the name"),
        (
            status(403, {"X-Error-Code": "GatedRepo"}),
            r"^maker/clip is gated or private\. Accept the licence at http://127\.0\.0\.1:\d+/"
            r"maker/clip with your account, set HF_TOKEN to a token of it, and pull again\.$",
        ),
        (status(404, {"X-Error-Code": "RevisionNotFound"}), r"^maker/clip has no such revision"),
        (status(410), r"answered HTTP 410 for maker/clip\.$"),
        (lambda handler, _: fake_hub.ordinary(handler, b"<html>"), "no list of files"),
        (lambda handler, _: fake_hub.ordinary(handler, b"{}"), "did not answer with a list"),
    ],
)
def test_what_the_hub_refuses_is_one_sentence(hub, answer, sentence):
    hub.next["list"] = [answer]
    with pytest.raises(TwinlensError, match=sentence):
        pull.pull("hf:maker/clip")
    assert len(hub.requests) == 1


def test_a_repository_without_a_model_is_told_from_one_with(hub):
    hub.repos["maker/text"] = {"README.md": b"", "notes.txt": b""}
    with pytest.raises(ModelNotFound, match=r"^maker/text holds no model .* README\.md, notes"):
        pull.pull("hf:maker/text")


def test_a_file_over_a_redirect_to_the_hub_itself_arrives(hub):
    hub.next["model.safetensors"] = [redirect(f"{hub.url}/cdn/model.safetensors")]
    assert "model.safetensors" in fetched(pull.pull("hf:maker/clip"))
    assert hub.requests[-1][0] == "/cdn/model.safetensors"


@pytest.mark.parametrize(
    ("location", "reason"),
    [
        ("https://10.0.0.5/model", "an address inside a private network"),
        ("https://localhost/model", "an address inside a private network"),
        ("https://[::ffff:127.0.0.1]/model", "an address inside a private network"),
        ("https://169.254.169.254/latest", "an address inside a private network"),
        ("http://127.0.0.1:1/model", "only https is followed"),
        ("ftp://example.org/model", "only https is followed"),
    ],
)
def test_a_redirect_into_the_private_network_is_refused(hub, location, reason):
    hub.next["model.safetensors"] = [redirect(location)]
    with pytest.raises(TwinlensError, match=rf"redirects to .*, which is refused: {reason}\."):
        pull.pull("hf:maker/clip")


def test_a_public_name_for_a_private_address_is_refused_before_it_is_contacted(hub, monkeypatch):
    hub.next["model.safetensors"] = [redirect("https://cdn.example.org/model")]
    real = socket.getaddrinfo

    def resolve(host, *rest, **options):
        return real("127.0.0.1" if host == "cdn.example.org" else host, *rest, **options)

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    with pytest.raises(TwinlensError, match=r"leads to cdn\.example\.org, which is 127\.0\.0\.1"):
        pull.pull("hf:maker/clip")


def test_the_token_goes_to_the_hub_and_nowhere_else(hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret\n")
    monkeypatch.setattr(connection.Connection, "redirect_refusal", lambda self, url: None)
    with FakeHub() as cdn:
        cdn.repos["any/any"] = REPO
        hub.next["model.safetensors"] = [redirect(f"{cdn.url}/cdn/model.safetensors")]
        hub.next["config.json"] = [redirect(f"{hub.url}/moved/config.json")]
        pull.pull("hf:maker/clip")
        (elsewhere,) = cdn.asked_for("model.safetensors")
    assert "Authorization" not in elsewhere
    assert {headers.get("Authorization") for _, headers in hub.requests} == {"Bearer hf_secret"}


def test_a_token_is_not_sent_in_clear_text_nor_printed(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("HF_ENDPOINT", "http://hub.example.org")
    assert not connection.Connection().may_send_token
    monkeypatch.setenv("HF_TOKEN", "hf_secret hf_more")
    with pytest.raises(ConfigError) as caught:
        connection.Connection()
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("endpoint", ["huggingface.co", "ftp://h", "https://me:pass@hub", "http:"])
def test_an_endpoint_that_is_no_hub_is_refused(monkeypatch, endpoint):
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    with pytest.raises(ConfigError, match=r"^HF_ENDPOINT must be .* like https://huggingface\.co"):
        connection.Connection()


def test_without_a_connection_the_host_and_the_way_out_are_named(hub, monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{port}")
    with pytest.raises(TwinlensError) as caught:
        pull.pull("hf:maker/clip")
    assert str(caught.value) == (
        f"127.0.0.1:{port} cannot be reached (connection refused). Connect this machine, or pull "
        f"on one that is connected, copy the folder here, and name it with --model FOLDER."
    )


def test_names_that_lead_out_of_the_folder_are_never_fetched(hub, tmp_path):
    tricks = ("../evil.safetensors", "/etc/evil.safetensors", "sub/model.safetensors", "a\\b.npz")
    hub.repos["maker/evil"] = {name: b"" for name in tricks}
    with pytest.raises(ModelNotFound, match="maker/evil holds no model"):
        pull.pull("hf:maker/evil")
    evil = download.RemoteFile(name="../evil", url=f"{hub.url}/evil")
    with pytest.raises(TwinlensError, match="is refused: no plain name"):
        download.fetch(evil, tmp_path, connection.Connection())


def plain_model(url, body):
    sha256 = hashlib.sha256(body).hexdigest()
    return PublishedModel(
        **{"name": "test/plain", "family": "openai", "title": "Test", "format": "openai_pt"},
        **{"url": f"{url}/clip/{sha256}/ViT.pt", "sha256": sha256},
        **{"context": 77, "activation": "quick_gelu", "preprocess": "openai"},
    )


def test_a_single_file_at_a_url_is_continued_and_checked(hub):
    hub.repos["openai/files"] = {"ViT.pt": WEIGHTS}
    hub.next["ViT.pt"] = [drop_after(1_000_000), fake_hub.damaged, drop_after(2_000_000)]
    heard = []
    model = plain_model(hub.url, WEIGHTS)
    folder = pull.pull(model, progress=lambda *numbers: heard.append(numbers))
    assert (folder / "ViT.pt").read_bytes() == WEIGHTS
    assert heard[-1] == (3_000_000, 3_000_000)
    assert cache.read_manifest(folder)["source"] == model.url


def test_a_single_file_that_lacked_only_its_check_is_complete(hub):
    hub.repos["openai/files"] = {"ViT.pt": WEIGHTS}
    folder = cache.model_folder("test/plain")
    folder.mkdir(parents=True)
    (folder / "ViT.pt.partial").write_bytes(WEIGHTS)
    pull.pull(plain_model(hub.url, WEIGHTS))
    assert len(hub.asked_for("ViT.pt")) == 1  # answered with 416: there is nothing more


def test_a_single_file_of_another_content_is_refused(hub):
    hub.repos["openai/files"] = {"ViT.pt": bytes(1000)}
    with pytest.raises(CheckpointMismatch, match=r"^ViT\.pt arrived .* damaged, twice"):
        pull.pull(plain_model(hub.url, WEIGHTS))


def test_a_url_that_is_not_https_is_not_fetched(hub):
    with pytest.raises(TwinlensError, match="is not fetched: only https is"):
        pull.pull(plain_model("http://example.org", WEIGHTS))
    with pytest.raises(TwinlensError, match="is not fetched: only https is"):
        pull.pull(plain_model("file://localhost", WEIGHTS))


def test_a_disk_without_room_is_noticed_before_anything_is_fetched(hub, monkeypatch):
    class Usage:
        free = 52_000_000

    monkeypatch.setattr(download.shutil, "disk_usage", lambda path: Usage)
    with pytest.raises(TwinlensError, match=r"needs 3 MB, and the disk .* has 52 MB free\. Free"):
        pull.pull("hf:maker/clip")
    assert hub.asked_for("config.json") == []


def test_a_disk_that_fills_up_meanwhile_keeps_what_it_has(hub, monkeypatch):
    full = OSError(28, "No space left on device")
    monkeypatch.setattr(download.os, "fsync", lambda number: (_ for _ in ()).throw(full))
    with pytest.raises(TwinlensError, match=r"^the disk that holds .* is full\. What was fetched"):
        pull.pull("hf:maker/clip")


def test_a_place_that_cannot_be_written_to_is_one_sentence(hub, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(TwinlensError, match=r"file/models cannot be written to \(Not a directory"):
        pull.pull("hf:maker/clip", tmp_path / "file" / "models")


def test_a_folder_with_other_files_is_left_alone(hub, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.json").write_text("mine")
    with pytest.raises(TwinlensError, match=r"mine is not empty \(it holds config\.json\)"):
        pull.pull("hf:maker/clip", tmp_path / "mine")
    hub.repos["maker/other"] = dict(REPO)
    pull.pull("hf:maker/clip", tmp_path / "new")
    with pytest.raises(TwinlensError, match="new holds hf:maker/clip from hf:maker/clip"):
        pull.pull("hf:maker/other", tmp_path / "new")


def test_two_pulls_of_one_model_share_one_download(hub):
    hub.next["model.safetensors"] = [fake_hub.slowly]
    waits, folders = [], []

    def work():
        folders.append(pull.pull("hf:maker/clip", on_wait=lambda: waits.append(1)))

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert folders[0] == folders[1]
    assert len(waits) == 1
    assert len(hub.asked_for("model.safetensors")) == 1


@pytest.mark.skipif(sys.platform == "win32", reason="needs kill -9")
def test_kill_9_in_the_middle_loses_nothing_that_had_arrived(hub, tmp_path):
    hub.next["model.safetensors"] = [fake_hub.slowly]
    source = str(Path(pull.__file__).parents[2])
    environment = {**os.environ, "PYTHONPATH": source}
    command = [sys.executable, "-m", "twinlens", "pull", "hf:maker/clip", "--to", "model"]
    partial = tmp_path / "model" / "model.safetensors.partial"
    with subprocess.Popen(command, cwd=tmp_path, env=environment) as process:
        deadline = time.monotonic() + 20
        while not (partial.exists() and partial.stat().st_size > 500_000):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    had = partial.stat().st_size
    assert 500_000 < had < len(WEIGHTS)
    done = subprocess.run(
        [*command, "--json"], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert hub.asked_for("model.safetensors")[-1]["Range"] == f"bytes={had}-"
    assert (tmp_path / "model" / "model.safetensors").read_bytes() == WEIGHTS
    assert json.loads(done.stdout)["folder"] == "model"
    assert done.stderr.splitlines()[0].startswith("pulled hf:maker/clip: 4 files, 3 MB, in ")
