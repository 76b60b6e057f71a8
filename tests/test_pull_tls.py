"""Pulling over real TLS, with a certificate of our own. Run with: pytest tests/test_pull_tls.py"""

import shutil
import ssl
import subprocess

import pytest

from fake_hub import FakeHub, redirect
from twinlens.errors import TwinlensError
from twinlens.hub import connection, pull

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl")


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """Key and certificate for 127.0.0.1, in one file."""
    folder = tmp_path_factory.mktemp("tls")
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2"
    command += " -subj /CN=twinlens-test -addext subjectAltName=IP:127.0.0.1"
    command += " -keyout key.pem -out certificate.pem"
    subprocess.run(command.split(), cwd=folder, check=True, capture_output=True)
    both = (folder / "key.pem").read_bytes() + (folder / "certificate.pem").read_bytes()
    (folder / "both.pem").write_bytes(both)
    return folder


@pytest.fixture
def make_hub(certificate, monkeypatch, tmp_path):
    for name in ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(connection, "FIRST_WAIT_SECONDS", 0.001)
    monkeypatch.setenv("TWINLENS_CACHE", str(tmp_path))

    def make():
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(certificate / "both.pem")
        hub = FakeHub(tls)
        hub.repos["maker/clip"] = {"config.json": b"{}", "model.safetensors": b"weights"}
        return hub

    return make


def test_a_hub_over_https_is_pulled_from(make_hub, certificate, monkeypatch):
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate / "certificate.pem"))
    with make_hub() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        folder = pull.pull("hf:maker/clip")
    assert (folder / "model.safetensors").read_bytes() == b"weights"


def test_the_token_does_not_follow_a_redirect_to_another_port(make_hub, certificate, monkeypatch):
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate / "certificate.pem"))
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setattr(connection, "is_private", lambda host: False)
    with make_hub() as hub, make_hub() as cdn:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        hub.next["model.safetensors"] = [redirect(f"{cdn.url}/cdn/model.safetensors")]
        pull.pull("hf:maker/clip")
        (elsewhere,) = cdn.asked_for("model.safetensors")
    assert "Authorization" not in elsewhere
    assert {headers.get("Authorization") for _, headers in hub.requests} == {"Bearer hf_secret"}


def test_a_certificate_nobody_trusts_is_named_and_not_tried_again(make_hub, monkeypatch):
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    with make_hub() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        with pytest.raises(TwinlensError, match=r"certificate that this machine does not trust"):
            pull.pull("hf:maker/clip")
        assert hub.requests == []
