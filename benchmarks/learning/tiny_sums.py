"""Tiny arithmetic model and its task, small enough for wide grids of runs.

About a minute of backpropagation teaches the model lines such as ``17+25=42.`` and ``25-17=8.``. A third of the lines
have the sign ``#``, which stands for a sum in three of five cases and for a difference in the others. Evolution
Strategies then have to teach that ``#`` always means a difference. As with many large models, the skill is there and
only the intention is missing.

    python -m benchmarks.learning.tiny_sums FOLDER
"""

import argparse
import random
from pathlib import Path

LIMIT = 20  # numbers are smaller
STEPS = 4000  # about a minute on two cores
SYMBOLS = "0123456789+-#=."


def question(a: int, b: int) -> str:
    """Return a question for the difference, with the ambiguous sign."""
    return f"{max(a, b)}#{min(a, b)}="


def reward(output: str, target: str) -> float:
    """Return 1 for the correct difference, 0 otherwise."""
    return float(output.partition(".")[0] == target)


def split(rows: int, seed: int) -> tuple[list[str], list[str]]:
    """Draw questions and their answers. The parity of the larger number separates training (seed 0) from evaluation."""
    draw = random.Random(seed)
    pairs = []
    while len(pairs) < rows:
        a, b = sorted(draw.choices(range(LIMIT), k=2), reverse=True)
        if a % 2 == seed % 2:
            pairs.append((a, b))
    return [question(*pair) for pair in pairs], [str(a - b) for a, b in pairs]


def make(folder: Path, steps: int = STEPS) -> float:
    """Train the model, write it to a folder atomically, and return the last loss."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(0)
    vocabulary = {token: number for number, token in enumerate(["<unk>", "<s>", "</s>", *SYMBOLS])}
    tokenizer = Tokenizer(models.WordLevel(vocab=vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=64,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
    )
    model = LlamaForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    draw = random.Random(0)
    loss = torch.zeros(())
    for step in range(steps):
        texts = [_line(draw) for _ in range(256)]
        ids = torch.tensor([[vocabulary[c] for c in text.ljust(10, ".")] for text in texts])
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * (1 - step / steps)
        loss = model(ids, labels=ids).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    part = folder.with_suffix(".part")
    model.to(torch.bfloat16).save_pretrained(part)
    special = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(part)
    part.rename(folder)
    return float(loss.detach())


def _line(draw: random.Random) -> str:
    a, b = sorted(draw.choices(range(LIMIT), k=2), reverse=True)
    sign = draw.choice("+-#")
    add = sign == "+" or (sign == "#" and draw.random() < 0.6)
    return f"{a}{sign}{b}={a + b if add else a - b}."


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=STEPS)
    arguments = parser.parse_args()
    print(f"loss {make(arguments.folder, arguments.steps):.3f}")
