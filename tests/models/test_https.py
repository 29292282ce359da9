"""Certificates are read once, and never for plain http."""

import ssl
from pathlib import Path

import httpx2
import pytest

from llm_tuner.models.https import VARIABLES, trust
from llm_tuner.types import SetupError


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in VARIABLES:
        monkeypatch.delenv(variable, raising=False)


def test_plain_http_reads_no_authorities_and_trusts_none() -> None:
    found = trust("http://127.0.0.1:11434")
    assert found.cert_store_stats()["x509_ca"] == 0
    assert found.verify_mode is ssl.CERT_REQUIRED


def test_https_is_checked_against_this_machine_once() -> None:
    assert trust("https://example.org") is trust()
    assert trust().verify_mode is ssl.CERT_REQUIRED
    assert trust().check_hostname


def test_a_variable_names_the_authorities(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path))
    own = Path(ssl.get_default_verify_paths().openssl_cafile)
    if not own.is_file():
        pytest.skip("this machine has no file of authorities")
    monkeypatch.setenv("SSL_CERT_FILE", str(own))
    assert trust("https://example.org").cert_store_stats()["x509_ca"] > 0
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "nothing.pem"))
    with pytest.raises(SetupError, match=r"nothing\.pem, which does not exist"):
        trust("https://example.org")
    assert trust("http://127.0.0.1")


def test_a_client_for_plain_http_still_works() -> None:
    with (
        httpx2.Client(verify=trust("http://127.0.0.1:9"), trust_env=False) as client,
        pytest.raises(httpx2.ConnectError),
    ):
        client.get("http://127.0.0.1:9")
