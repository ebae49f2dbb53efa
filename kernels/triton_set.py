"""TRITON: our own kernels, one file an operation. What a GPU runs.

Only this file and what it imports need Triton.
"""

from kernels.add_layer_norm import add_layer_norm
from kernels.attention import attention
from kernels.attention_probabilities import attention_probabilities
from kernels.bias_gelu import bias_gelu
from kernels.cross_entropy import linear_cross_entropy
from kernels.dropout import dropout
from kernels.embedding import embedding_layer_norm
from kernels.kernel_set import KernelSet
from kernels.lamb import lamb_step
from kernels.layer_norm import layer_norm

TRITON = KernelSet(
    name="TRITON",
    attention=attention,
    attention_probabilities=attention_probabilities,
    layer_norm=layer_norm,
    add_layer_norm=add_layer_norm,
    bias_gelu=bias_gelu,
    embedding_layer_norm=embedding_layer_norm,
    linear_cross_entropy=linear_cross_entropy,
    dropout=dropout,
    lamb_step=lamb_step,
)
