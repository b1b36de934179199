"""Where no network is, the hub's client looks into its cache and says so at once."""

from __future__ import annotations

import socket
import time
from typing import Any

import pytest

from kintsugi.agents.policies.transformers_policy import open_policy
from kintsugi.errors import PolicyError
from kintsugi.hub import hub_or_cache


def test_without_a_network_a_hub_name_fails_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    constants = pytest.importorskip("huggingface_hub").constants
    before = constants.HF_HUB_OFFLINE

    def unknown(*arguments: Any, **named: Any) -> Any:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    began = time.monotonic()
    with pytest.raises(PolicyError, match="nobody/nothing"):
        open_policy("nobody/nothing")
    assert time.monotonic() - began < 10 and before == constants.HF_HUB_OFFLINE


def test_with_a_network_or_a_proxy_the_client_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    constants = pytest.importorskip("huggingface_hub").constants
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *arguments, **named: [("found",)])
    with hub_or_cache():
        assert constants.HF_HUB_OFFLINE is False
    monkeypatch.setattr(socket, "getaddrinfo", lambda *arguments, **named: [])
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:1")
    with hub_or_cache():
        assert constants.HF_HUB_OFFLINE is False
    monkeypatch.delenv("https_proxy")
    with hub_or_cache():
        assert constants.HF_HUB_OFFLINE is True
