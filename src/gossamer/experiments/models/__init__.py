"""Reference models of our own, for 32x32 images and smaller, vectors and bytes."""

from .registry import MODELS, ModelInfo, build, eligible_count, model_options, small_twin

__all__ = ["MODELS", "ModelInfo", "build", "eligible_count", "model_options", "small_twin"]
