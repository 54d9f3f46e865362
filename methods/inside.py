"""Old name of `methods.layer_method`, for one release."""

from methods.layer_method import LayerMethod as InsideLLM

__all__ = ["InsideLLM"]
