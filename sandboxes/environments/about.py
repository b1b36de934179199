"""What an environment says of itself, without being opened: what `kintsugi environments` lists and `data fetch` reads.

    ABOUT = About(kind="program of thought", metric="|number - Answer| <= 1e-4", splits=("train", "heldout"), …)

stands in the environment's file. Environments without it (of other packages, say) are listed by the first line of
their module's docstring. Left out: fetching itself (`official_download.py`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from kintsugi.sandboxes.environments.environment import environment_module


@dataclass(frozen=True, kw_only=True)
class Download:
    """One file of an official release. path: where it lies in the data folder. sha256: of the whole file, "" when it was
    not known as this was written: then the first fetch writes it down and later ones compare. unpack: it is an archive
    (zip or tar), unpacked into the folder."""

    url: str
    path: str
    sha256: str = ""
    unpack: bool = False


@dataclass(frozen=True, kw_only=True)
class About:
    """kind: how an attempt goes ("program of thought", "several turns", …). metric: what success means. data: files of
    the official release and their schema, in one line. splits: names that `tasks` takes with official data; licence: of
    those data. bundled: a set of the project's own plays without any (`data="bundled"`). home: where the release is.
    extra: the optional extra it needs. on_request: splits of so many tasks that `environments check` tries their golds only
    when they are named."""

    kind: str
    metric: str
    data: str = "none: tasks are made on the spot"
    splits: tuple[str, ...] = ("train", "heldout", "demonstrations")
    licence: str = ""
    home: str = ""
    bundled: bool = False
    extra: str = ""
    downloads: tuple[Download, ...] = ()
    on_request: tuple[str, ...] = ()

    @property
    def split_names(self) -> tuple[str, ...]:
        """The names in `splits`, without what is said of them: "train and heldout (4 : 1 of it)" are two."""
        bare = (re.sub(r"\([^)]*\)", "", one) for one in self.splits)
        return tuple(dict.fromkeys(name.strip() for one in bare for name in re.split(r",|\band\b", one) if name.strip()))


def about(name: str) -> About:
    """What the environment `name` says of itself. Raises ConfigError for an unknown name."""
    module = environment_module(name)
    said = getattr(module, "ABOUT", None)
    if isinstance(said, About):
        return said
    first = (module.__doc__ or "no description").strip().split("\n")[0]
    return About(kind=first, metric="see its docstring", data="see its docstring", splits=())
