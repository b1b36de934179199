"""Vision models with random weights, small enough for a test: the classes that real checkpoints have, made from configs."""

from __future__ import annotations

import json
import string
from importlib import import_module
from pathlib import Path
from typing import Any

_LETTERS = [*string.ascii_lowercase, *string.digits, *"'?.,-"]


def clip_tokenizer(folder: Path) -> Any:
    """A CLIP tokenizer of single letters; 0 is padding, as OWL-ViT takes a query that begins with 0 for none."""
    from transformers import CLIPTokenizer

    folder.mkdir(parents=True, exist_ok=True)
    words = ["!", *_LETTERS, *(f"{letter}</w>" for letter in _LETTERS), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: place for place, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    (folder / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 32, "pad_token": "!"}))
    return CLIPTokenizer.from_pretrained(folder)


def bert_tokenizer(folder: Path) -> Any:
    from transformers import BertTokenizer

    folder.mkdir(parents=True, exist_ok=True)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *_LETTERS, *(f"##{letter}" for letter in _LETTERS)]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    (folder / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 32}))
    return BertTokenizer.from_pretrained(folder)


def owlvit(folder: Path) -> str:
    """A folder with an OWL-ViT detector."""
    import torch
    from transformers import OwlViTConfig, OwlViTForObjectDetection, OwlViTProcessor
    from transformers.models.owlvit.image_processing_pil_owlvit import OwlViTImageProcessorPil

    torch.manual_seed(0)
    tokenizer = clip_tokenizer(folder / "tokenizer")
    layer = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {"vocab_size": len(tokenizer), "max_position_embeddings": 32, "pad_token_id": 0, **layer}
    text |= {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = OwlViTConfig(text_config=text, vision_config={"image_size": 32, "patch_size": 8, **layer}, projection_dim=16)
    OwlViTForObjectDetection(config).save_pretrained(folder)
    images = OwlViTImageProcessorPil(size={"height": 32, "width": 32})
    OwlViTProcessor(image_processor=images, tokenizer=tokenizer).save_pretrained(folder)
    return str(folder)


def vilt(folder: Path, answers: tuple[str, ...] = ("yes", "no", "red", "left", "cup")) -> str:
    """A folder with a ViLT answerer that knows these answers."""
    import torch
    from transformers import ViltConfig, ViltForQuestionAnswering, ViltProcessor
    from transformers.models.vilt.image_processing_pil_vilt import ViltImageProcessorPil

    torch.manual_seed(1)
    tokenizer = bert_tokenizer(folder / "tokenizer")
    config = ViltConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=32, image_size=32, patch_size=8, id2label=dict(enumerate(answers)),
        label2id={answer: place for place, answer in enumerate(answers)},
    )  # fmt: skip
    ViltForQuestionAnswering(config).save_pretrained(folder)
    sizes: dict[str, Any] = {"size": {"shortest_edge": 32}, "size_divisor": 8}  # typed in some builds of transformers only
    images = ViltImageProcessorPil(**sizes)
    ViltProcessor(image_processor=images, tokenizer=tokenizer).save_pretrained(folder)
    return str(folder)


def blip(folder: Path) -> str:
    """A folder with a BLIP answerer, which writes its answers."""
    import torch
    from transformers import BlipConfig, BlipForQuestionAnswering, BlipProcessor
    from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

    torch.manual_seed(2)
    tokenizer = bert_tokenizer(folder / "tokenizer")
    layer = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {"vocab_size": len(tokenizer), "max_position_embeddings": 40, "encoder_hidden_size": 16, **layer}
    text |= {"bos_token_id": 2, "eos_token_id": 3, "sep_token_id": 3, "pad_token_id": 0}
    config = BlipConfig(text_config=text, vision_config={"image_size": 32, "patch_size": 8, **layer}, projection_dim=16)
    BlipForQuestionAnswering(config).save_pretrained(folder)
    images = BlipImageProcessorPil(size={"height": 32, "width": 32})
    BlipProcessor(image_processor=images, tokenizer=tokenizer).save_pretrained(folder)
    return str(folder)


def gligen(folder: Path) -> Any:
    """A Stable Diffusion pipeline with GLIGEN's gated attention, which paints 32 pixels of noise."""
    import torch
    from transformers import CLIPTextConfig, CLIPTextModel

    diffusers: Any = import_module("diffusers")  # whose annotations refuse what its own configurations hold
    torch.manual_seed(3)
    tokenizer = clip_tokenizer(folder / "tokenizer")
    text = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=37, num_hidden_layers=1, num_attention_heads=4,
        max_position_embeddings=77, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    unet = diffusers.UNet2DConditionModel(
        block_out_channels=(32, 64), layers_per_block=1, sample_size=16, in_channels=4, out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=32, attention_type="gated", attention_head_dim=8,
    )  # fmt: skip
    vae = diffusers.AutoencoderKL(
        block_out_channels=[32, 64], in_channels=3, out_channels=3, latent_channels=4,
        down_block_types=["DownEncoderBlock2D"] * 2, up_block_types=["UpDecoderBlock2D"] * 2,
    )  # fmt: skip
    # Random gates are closed (zero): opened, so that boxes matter.
    for name, weight in unet.named_parameters():
        if name.endswith(("alpha_attn", "alpha_dense")):
            torch.nn.init.constant_(weight, 2.0)
    return diffusers.StableDiffusionGLIGENPipeline(
        vae=vae, text_encoder=CLIPTextModel(text), tokenizer=tokenizer, unet=unet, scheduler=diffusers.DDIMScheduler(),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
