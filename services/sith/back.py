"""Stage back: input.png, smplx.obj -> back_0.png to back_7.png as asked for, uv.png."""

from __future__ import annotations

import gc
from pathlib import Path
from types import SimpleNamespace

from .files import require, save, subject

SIZES = {"SiTH_diffusion": 512, "SiTH-diffusion-2000": 512, "SiTH-diffusion-1K": 1024}
"""Pixels along each side that the weights were trained for; the first are loaded at start."""


def load(weights: Path):
    import nvdiffrast.torch  # noqa: F401  kaolin hides it if this fails

    back = SimpleNamespace(weights=weights, name="", pipeline=None)
    choose(back, next(iter(SIZES)))
    return back


def choose(back, name: str) -> None:
    """Reads the diffusion model, unless it is the one that is loaded (hallucinate.py:52-86)."""
    if back.name == name:
        return
    import diffusers
    import torch
    from diffusion.lib.ccprojection import CCProjection
    from diffusion.lib.pipeline import BackHallucinationPipeline
    from transformers import CLIPVisionModelWithProjection

    back.name, back.pipeline = "", None
    gc.collect()
    torch.cuda.empty_cache()
    folder = str(back.weights / name)
    require(back.weights / name / "unet" / "config.json")

    def read(cls, part: str, **more):
        return cls.from_pretrained(folder, subfolder=part, **more)

    clip = read(CLIPVisionModelWithProjection, "image_encoder")
    parts = {
        "vae": read(diffusers.AutoencoderKL, "vae"),
        "unet": read(diffusers.UNet2DConditionModel, "unet"),
        "controlnet": read(diffusers.ControlNetModel, "controlnet"),
        "refer_clip_proj": read(CCProjection, "projection", clip_image_encoder=clip),
        "clip_image_encoder": clip,
    }
    for part in parts.values():
        part.requires_grad_(False)  # else autocast keeps a second copy of the weights
    noise = read(diffusers.DDPMScheduler, "scheduler")
    pipeline = BackHallucinationPipeline(scheduler=noise, **parts)
    pipeline.scheduler = diffusers.UniPCMultistepScheduler.from_config(noise.config)
    back.name, back.pipeline = name, pipeline.to("cuda")


def hallucinate(back, job) -> None:
    """Candidate n has seed + n, so it is the same however many are made, and at once."""
    import torch
    from diffusion.lib.test_diffusion_dataset import TestDiffDataset
    from torch.utils.data import default_collate

    folder, params = subject(job), job.params
    if back.name != params.back_model:
        job.progress(0.01, f"Loading {params.back_model}")
    choose(back, params.back_model)
    scene = TestDiffDataset(str(folder), "data/smplx_uv.obj", size=SIZES[params.back_model])
    data = default_collate([scene[0]])
    save(data["tgt_uv"][0].permute(1, 2, 0).numpy() / 2 + 0.5, job.outputs / "uv.png")
    for first in range(0, params.back_views, params.back_views_at_once):
        last = min(first + params.back_views_at_once, params.back_views)
        low, high = (0.05 + 0.95 * part / params.back_views for part in (first, last))
        job.progress(low, f"Back view {last} of {params.back_views}", until=high)
        generators = [torch.Generator().manual_seed(params.seed + n) for n in range(first, last)]
        with torch.autocast("cuda"):
            made = back.pipeline.forward(
                data,
                generator=generators,
                num_inference_steps=params.num_inference_steps,
                guidance_scale=params.guidance_scale,
                controlnet_conditioning_scale=params.conditioning_scale,
                num_images_per_prompt=last - first,
            )
        for number, view in enumerate(made, first):  # (height, width, 3), 0 to 1
            save(view, job.outputs / f"back_{number}.png")
