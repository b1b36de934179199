"""Model folders that a training cannot use, and what is not told to the people who run it."""

from __future__ import annotations

import asyncio
import shutil
import warnings
from pathlib import Path

import pytest

for needed in ("torch", "transformers", "trl", "peft"):
    pytest.importorskip(needed)

from kintsugi.agents.policies.transformers_policy import open_policy  # noqa: E402
from kintsugi.agents.policies.weight_loading import loading  # noqa: E402
from kintsugi.errors import PolicyError  # noqa: E402
from kintsugi.training.learn import learn  # noqa: E402
from kintsugi.training.learn_config import LearnConfig, LoraSettings  # noqa: E402
from kintsugi.training.model_folder import merge_adapter  # noqa: E402
from tests.training.test_learn import ROWS, model  # noqa: E402, F401

ADAPTED = LearnConfig(steps=1, lora=LoraSettings(r=2, alpha=4))


def test_cut_off_weights_are_named(model: Path, tmp_path: Path) -> None:  # noqa: F811
    """Whatever starts from them: all weights, an adapter on them, an adapter that is cut off itself."""

    def refused(start: Path, config: LearnConfig, file: str) -> None:
        with pytest.raises(PolicyError, match=rf"{file}.*cut off or damaged.*restore the file from a copy") as caught:
            learn(ROWS, model=start, out=tmp_path / "out", config=config, seed=0)
        assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()

    adapter = learn(ROWS, model=model, out=tmp_path / "adapter", config=ADAPTED, seed=0).path
    cut = Path(shutil.copytree(model, tmp_path / "cut")) / "model.safetensors"
    cut.write_bytes(cut.read_bytes()[:1000])
    for config in (LearnConfig(steps=1), ADAPTED):
        refused(cut.parent, config, str(cut))
    (adapter / "adapter_model.safetensors").write_bytes((adapter / "adapter_model.safetensors").read_bytes()[:100])
    for config in (LearnConfig(steps=1), ADAPTED):
        refused(adapter, config, "adapter_model.safetensors")
    with pytest.raises(PolicyError, match=r"adapter_model\.safetensors"):
        merge_adapter(adapter, tmp_path / "merged")


def test_loading_an_adapter_says_nothing_of_other_libraries_names(model: Path, tmp_path: Path) -> None:  # noqa: F811
    adapter = learn(ROWS, model=model, out=tmp_path / "adapter", config=ADAPTED, seed=0).path
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        asyncio.run(open_policy(str(adapter)).close())
    assert [str(one.message) for one in told if "is_gradient_checkpointing" in str(one.message)] == []


def test_other_warnings_are_still_given() -> None:
    with pytest.warns(FutureWarning, match="something else"), loading("nowhere"):
        warnings.warn("something else is deprecated", FutureWarning, stacklevel=1)
