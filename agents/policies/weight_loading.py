"""Around every loading of weights, for a policy as for a training: damaged files as one sentence, one note less, and the
device they go to.

    with loading(folder, adapter_folder):
        model = AutoModelForCausalLM.from_pretrained(folder)        # a cut-off file is a PolicyError that names it

Left out: what a model's config or tokenizer may lack; those who load them know what they expected.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kintsugi.errors import ConfigError, PolicyError

_NOTE = "`is_gradient_checkpointing` is deprecated"
"""What transformers tells PEFT when it lays an adapter on a model: not for people who run a recipe."""


@contextmanager
def loading(*sources: str) -> Iterator[None]:
    """Damaged safetensors files in the folders `sources` (or hub names) are a PolicyError while this is entered.

    Of all warnings, only the one on a deprecated name that PEFT uses is kept back."""
    from safetensors import SafetensorError

    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=_NOTE, category=FutureWarning)
            yield
    except SafetensorError as error:
        file = _damaged(sources)
        found = f"{file.stat().st_size:,} bytes, cut off or damaged" if file else "a damaged file"
        raise PolicyError(
            f'expected whole weights in "{file or sources[0]}", found {found} ({error}): restore the file from a copy, '
            "or download or train the model again."
        ) from error


def known_device(name: str) -> str:
    """The device of that name; "auto" is CUDA where there is one. ConfigError for one that this machine has not."""
    import torch

    device = ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # unknown to torch, not built into it, or not here
        why = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ConfigError(f'device must be "auto", "cpu" or another of this machine, found "{name}": {why:.150}') from None
    return device


def _damaged(sources: tuple[str, ...]) -> Path | None:
    """The first weight file that does not open; safetensors does not say which."""
    from safetensors import SafetensorError, safe_open

    for source in sources:
        for file in sorted(Path(source).glob("*.safetensors")):
            try:
                with safe_open(file, framework="pt"):
                    pass
            except SafetensorError:
                return file
    return None
