"""Weights to and from PyTorch, Keras and Flax, modules for Flax on the pure core, and export.

Importing this package imports none of torch, keras, flax and safetensors. The modules, which need
flax, are in `lstm_jax.interop.nnx_modules` and `lstm_jax.interop.linen_modules`.
"""

from lstm_jax.interop.export import (
    export_classifier,
    export_sampler,
    export_step,
    save_exported,
    signature,
)
from lstm_jax.interop.files import load_arrays, load_pytorch, load_safetensors, save_safetensors
from lstm_jax.interop.flax import params_from_linen, params_from_nnx, params_to_linen, params_to_nnx
from lstm_jax.interop.keras import (
    layer_from_keras,
    layer_to_keras,
    layers_from_keras,
    layers_to_keras,
)
from lstm_jax.interop.plain import (
    language_model_from_plain,
    language_model_to_plain,
    layers_from_plain,
    layers_to_plain,
)
from lstm_jax.interop.pytorch import (
    LanguageModelNames,
    language_model_from_pytorch,
    language_model_to_pytorch,
    layers_from_pytorch,
    layers_to_pytorch,
)

__all__ = [
    "LanguageModelNames",
    "export_classifier",
    "export_sampler",
    "export_step",
    "language_model_from_plain",
    "language_model_from_pytorch",
    "language_model_to_plain",
    "language_model_to_pytorch",
    "layer_from_keras",
    "layer_to_keras",
    "layers_from_keras",
    "layers_from_plain",
    "layers_from_pytorch",
    "layers_to_keras",
    "layers_to_plain",
    "layers_to_pytorch",
    "load_arrays",
    "load_pytorch",
    "load_safetensors",
    "params_from_linen",
    "params_from_nnx",
    "params_to_linen",
    "params_to_nnx",
    "save_exported",
    "save_safetensors",
    "signature",
]
