"""GLIGEN paints a layout: Stable Diffusion that is told which phrase belongs into which box, through diffusers.

    painter = GligenPainter("gligen/diffusers-generation-text-box", device="cuda")
    painter.paint("a dog left of a car", layout).save("picture.png")

Called as VPGen calls it: boxes in 0 to 1, 50 steps, grounding in the first 30 % of them. The pipeline is one that diffusers
keeps among its deprecated ones, so the extra `vision` pins diffusers. Loaded at the first picture.

Not yet run on trained weights here: tests use a tiny random pipeline of the same class. Left out: judging what was
painted; the safety checker, as in VPGen.
"""

from __future__ import annotations

from typing import Any, Final

from kintsugi.errors import ConfigError, PolicyError, missing_extra
from kintsugi.sandboxes.environments.vpgen_layout import BINS, Layout

MODEL: Final = "gligen/diffusers-generation-text-box"


class GligenPainter:
    """model: a hub name or a folder. device: "auto" takes CUDA where there is one. steps: of denoising. grounded: share of
    the steps in which boxes are heeded. size: of the picture in pixels, None for the model's own. seed: of the noise.
    pipeline: a ready one instead of `model`. Raises MissingExtra without diffusers, ConfigError for odd numbers."""

    def __init__(
        self,
        model: str = MODEL,
        *,
        device: str = "auto",
        steps: int = 50,
        grounded: float = 0.3,
        size: int | None = None,
        seed: int = 0,
        pipeline: Any = None,
    ) -> None:
        from importlib.util import find_spec

        if any(find_spec(package) is None for package in ("diffusers", "torch", "transformers")):
            raise missing_extra("painting with GLIGEN", "vision")
        if steps < 1 or not 0 <= grounded <= 1:
            raise ConfigError(f"vpgen.gligen: expected steps from 1 and grounded in 0 to 1, found {steps} and {grounded}")
        self.model, self.device, self.steps, self.grounded = model, device, steps, grounded
        self.size, self.seed, self._pipeline = size, seed, pipeline

    def paint(self, caption: str, layout: Layout) -> Any:
        """The picture as a Pillow image; the same for the same seed on the same device. Raises PolicyError."""
        import torch

        pipeline = self._loaded()
        phrases = [box.phrase for box in layout.boxes]
        boxes = [[side / (BINS - 1) for side in box.corners] for box in layout.boxes]
        painted = pipeline(
            caption,
            height=self.size,
            width=self.size,
            gligen_phrases=phrases,
            gligen_boxes=boxes,
            gligen_scheduled_sampling_beta=self.grounded,
            num_inference_steps=self.steps,
            generator=torch.Generator("cpu").manual_seed(self.seed),
            output_type="pil",
        )
        return painted.images[0]

    def _loaded(self) -> Any:
        import torch

        device = self.device if self.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
        if self._pipeline is None:
            from diffusers import StableDiffusionGLIGENPipeline

            dtype = torch.float16 if device.startswith("cuda") else torch.float32
            try:
                self._pipeline = StableDiffusionGLIGENPipeline.from_pretrained(
                    self.model, dtype=dtype, safety_checker=None, requires_safety_checker=False
                )
            except (OSError, ValueError) as error:
                reason = str(error).strip().partition("\n")[0][:200]
                raise PolicyError(f"vpgen.gligen: {self.model} cannot be loaded as a GLIGEN pipeline ({reason})") from error
        pipeline = self._pipeline.to(device)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline
