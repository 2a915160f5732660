"""Models with random weights in the shapes of Qwen2.5, for timings, which do not depend on the weights' values."""

from collections.abc import Iterator
from pathlib import Path

import torch

#: Hidden size, intermediate size, layers, heads, key/value heads, vocabulary size, and whether embeddings are tied.
MODELS = {
    "0.5B": (896, 4864, 24, 14, 2, 151936, True),
    "1.5B": (1536, 8960, 28, 12, 2, 151936, True),
    "3B": (2048, 11008, 36, 16, 2, 151936, True),
    "7B": (3584, 18944, 28, 28, 4, 152064, False),
    "14B": (5120, 13824, 48, 40, 8, 152064, False),
    "32B": (5120, 27648, 64, 40, 8, 152064, False),
    "72B": (8192, 29568, 80, 64, 8, 152064, False),
    "tiny": (64, 96, 2, 2, 1, 300, True),
}


def shapes(name: str) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield names and shapes of a model's tensors."""
    hidden, inner, layers, heads, key_heads, vocabulary, tied = MODELS[name]
    keys = key_heads * hidden // heads
    yield "model.embed_tokens.weight", (vocabulary, hidden)
    for layer in range(layers):
        for part, shape in {
            "self_attn.q_proj.weight": (hidden, hidden),
            "self_attn.q_proj.bias": (hidden,),
            "self_attn.k_proj.weight": (keys, hidden),
            "self_attn.k_proj.bias": (keys,),
            "self_attn.v_proj.weight": (keys, hidden),
            "self_attn.v_proj.bias": (keys,),
            "self_attn.o_proj.weight": (hidden, hidden),
            "mlp.gate_proj.weight": (inner, hidden),
            "mlp.up_proj.weight": (inner, hidden),
            "mlp.down_proj.weight": (hidden, inner),
            "input_layernorm.weight": (hidden,),
            "post_attention_layernorm.weight": (hidden,),
        }.items():
            yield f"model.layers.{layer}.{part}", shape
    yield "model.norm.weight", (hidden,)
    if not tied:
        yield "lm_head.weight", (vocabulary, hidden)


def linear_layers(name: str) -> list[tuple[int, tuple[int, ...]]]:
    """Return the input size and the output sizes of each linear layer of a block, fused as in vLLM."""
    sizes = dict(shapes(name))
    fused = (
        ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        ("self_attn.o_proj",),
        ("mlp.gate_proj", "mlp.up_proj"),
        ("mlp.down_proj",),
    )
    weights = [[sizes[f"model.layers.0.{part}.weight"] for part in parts] for parts in fused]
    return [(layer[0][1], tuple(rows for rows, _ in layer)) for layer in weights]


def tensors(name: str, device: torch.device) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield a model's weights in bfloat16. They are the same on every call with the same device type."""
    generator = torch.Generator(device).manual_seed(0)
    for tensor, shape in shapes(name):
        values = torch.randn(shape, device=device, generator=generator).mul_(0.02)
        yield tensor, (values + 1 if tensor.endswith("norm.weight") else values).bfloat16()


def write(name: str, folder: Path, device: torch.device) -> Path:
    """Write a checkpoint with a byte-level tokenizer and return its folder."""
    from safetensors.torch import save_file
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen2Config

    hidden, inner, layers, heads, key_heads, vocabulary, tied = MODELS[name]
    known = ["<unk>", "<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    words = (f"w{number}" for number in range(len(known), vocabulary))  # tokens that occur in answers only
    tokens = {token: number for number, token in enumerate([*known, *words])}
    tokenizer = Tokenizer(models.BPE(vocab=tokens, merges=[], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    config = Qwen2Config(
        architectures=["Qwen2ForCausalLM"],
        dtype="bfloat16",
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=key_heads,
        vocab_size=vocabulary,
        tie_word_embeddings=tied,
        max_position_embeddings=4096,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
    )
    config.save_pretrained(folder)
    names = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, chat_template="{% for m in messages %}{{ m['content'] }}{% endfor %}", **names
    ).save_pretrained(folder)
    save_file({name: value.cpu() for name, value in tensors(name, device)}, folder / "model.safetensors")
    return folder
