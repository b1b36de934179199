"""Whether the model hub can be reached: asked before its client is, which tries for minutes where there is no network.

    with hub_or_cache():
        tokenizer = AutoTokenizer.from_pretrained("owner/model")

Left out: a hub that resolves and does not answer; its client has a time limit for that.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit
from urllib.request import getproxies


@contextmanager
def hub_or_cache() -> Iterator[None]:
    """While this is entered, the hub's client knows that it is offline where the hub's name does not resolve (and no
    proxy would resolve it): what is in its cache is found, what is not fails at once."""
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or not _resolves(constants.ENDPOINT)
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _resolves(address: str) -> bool:
    if getproxies():
        return True
    try:
        return bool(socket.getaddrinfo(urlsplit(address).hostname, None))
    except OSError:
        return False
