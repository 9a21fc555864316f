"""Weights to and from PyTorch, Keras and Flax, modules for Flax on the pure core, and export.

Importing this package imports none of torch, keras, flax and safetensors. The modules, which need
flax, are in `lstm_jax.interop.nnx_modules` and `lstm_jax.interop.linen_modules`.
"""

from lstm_jax.interop.export import export_classifier as export_classifier
from lstm_jax.interop.export import export_sampler as export_sampler
from lstm_jax.interop.export import export_step as export_step
from lstm_jax.interop.export import save_exported as save_exported
from lstm_jax.interop.export import signature as signature
from lstm_jax.interop.files import load_arrays as load_arrays
from lstm_jax.interop.files import load_pytorch as load_pytorch
from lstm_jax.interop.files import load_safetensors as load_safetensors
from lstm_jax.interop.files import save_safetensors as save_safetensors
from lstm_jax.interop.flax import params_from_linen as params_from_linen
from lstm_jax.interop.flax import params_from_nnx as params_from_nnx
from lstm_jax.interop.flax import params_to_linen as params_to_linen
from lstm_jax.interop.flax import params_to_nnx as params_to_nnx
from lstm_jax.interop.keras import layer_from_keras as layer_from_keras
from lstm_jax.interop.keras import layer_to_keras as layer_to_keras
from lstm_jax.interop.keras import layers_from_keras as layers_from_keras
from lstm_jax.interop.keras import layers_to_keras as layers_to_keras
from lstm_jax.interop.plain import language_model_from_plain as language_model_from_plain
from lstm_jax.interop.plain import language_model_to_plain as language_model_to_plain
from lstm_jax.interop.plain import layers_from_plain as layers_from_plain
from lstm_jax.interop.plain import layers_to_plain as layers_to_plain
from lstm_jax.interop.pytorch import LanguageModelNames as LanguageModelNames
from lstm_jax.interop.pytorch import language_model_from_pytorch as language_model_from_pytorch
from lstm_jax.interop.pytorch import language_model_to_pytorch as language_model_to_pytorch
from lstm_jax.interop.pytorch import layers_from_pytorch as layers_from_pytorch
from lstm_jax.interop.pytorch import layers_to_pytorch as layers_to_pytorch
