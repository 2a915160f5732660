"""vLLM's reload on a CPU: biases are as vLLM has loaded them."""

import torch
from torch.testing import assert_close

from esplug.vllm_worker.cpu_reload import round_biases


def layer(weight: torch.Tensor, bias: torch.Tensor) -> torch.nn.Module:
    module = torch.nn.Module()
    module.weight = torch.nn.Parameter(weight, requires_grad=False)
    module.bias = torch.nn.Parameter(bias, requires_grad=False)
    return module


def test_only_biases_of_packed_layers_are_rounded() -> None:
    """With AMX, vLLM packs the weights of small layers, and makes their biases float32."""
    bias = torch.tensor([0.1, -1.0003, 257.0])
    packed, plain = layer(torch.empty(0, dtype=torch.bfloat16), bias.clone()), layer(torch.ones(3, 3), bias.clone())
    packed.cpu_linear = whole = torch.nn.functional.linear
    kept = layer(torch.empty(0), bias.clone())
    kept.cpu_linear = whole
    round_biases(torch.nn.ModuleList([packed, plain, kept]))
    assert packed.bias.dtype == torch.float32
    assert_close(packed.bias.data, torch.tensor([0.10009765625, -1.0, 256.0]), rtol=0, atol=0)
    assert_close(plain.bias.data, bias, rtol=0, atol=0)
    assert_close(kept.bias.data, bias, rtol=0, atol=0)
