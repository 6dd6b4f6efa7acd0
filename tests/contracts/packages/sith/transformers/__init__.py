"""As much of transformers as the worker touches."""

from diffusers import Part


class CLIPVisionModelWithProjection(Part):
    pass
