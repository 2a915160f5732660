"""Tiny models of real architectures, with random weights and a byte-level tokenizer."""

from pathlib import Path

_EXPERTS = {"num_experts_per_tok": 2, "num_experts": 4, "moe_intermediate_size": 32}

#: Settings of architectures that differ from those below.
ARCHITECTURES = {
    "qwen2": {"num_key_value_heads": 2},
    "mistral": {"sliding_window": 16},
    "gemma2": {"sliding_window": 16, "query_pre_attn_scalar": 32},
    "gemma3_text": {"sliding_window": 16, "query_pre_attn_scalar": 32},
    "phi3": {"num_key_value_heads": 2, "original_max_position_embeddings": 1024},
    "qwen2_moe": _EXPERTS | {"num_key_value_heads": 2, "shared_expert_intermediate_size": 64},
    "qwen3_moe": _EXPERTS | {"moe_intermediate_size": 48},  # vLLM pads it on a CPU
    "mixtral": {"num_local_experts": 4, "sliding_window": None},
    "olmoe": {"num_experts": 4, "num_experts_per_tok": 2, "num_key_value_heads": 2},
    "glm4_moe": {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "n_shared_experts": 1}
    | {"first_k_dense_replace": 1},
    "granitemoe": {"num_local_experts": 4, "num_experts_per_tok": 2},
}

CHAT = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}<assistant>"


def make_tiny_model(folder: Path, architecture: str = "llama", tied: bool = True, dtype: str = "float32") -> Path:
    """Write a two-layer model whose vocabulary (300) is not a multiple of vLLM's padding."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(7)
    config = AutoConfig.for_model(
        architecture,
        vocab_size=300,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=2,
        **{"num_key_value_heads": 1, "head_dim": 32} | ARCHITECTURES.get(architecture, {}),
        max_position_embeddings=1024,
        tie_word_embeddings=tied,
        initializer_range=0.3,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
    )
    model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
    with torch.no_grad():  # norms and biases are constant at first, which would hide a mix-up
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    _byte_tokenizer().save_pretrained(folder)
    return folder


def _byte_tokenizer():
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = ["<unk>", "<s>", "</s>"]
    vocabulary = {token: i for i, token in enumerate([*special, *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>", chat_template=CHAT
    )
