"""Tiny models and their tasks: all members of a population in one batch, so that a run takes seconds on one core.

Three variants stand for different tasks. Each model can do two things and does the wrong one more often, as the
model of ``learning/tiny_sums.py``. Evolution Strategies have to teach the other one:

- ``small``: ``17#5=`` means a difference, as in ``learning/tiny_sums.py``; 2 layers of 64 (0.08 million weights).
- ``deep``: the same with 4 layers of 48 (0.09 million weights).
- ``reverse``: ``3817>`` means the digits in reverse order, not a copy; 2 layers of 64. The reward is the share of
  leading characters that are right.

Rewards are those of greedy answers. They need no decoding: a greedy answer is right as far as every next token is the
most likely one after the right ones before it. Weights and arithmetic are float32.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, scaled_dot_product_attention, silu

HEADS = 4
SYMBOLS = "0123456789+-#>=."
KINDS = ("norms", "embeddings", "attention", "mlp")
FOLDER = Path(__file__).parents[2] / "models"


@dataclass(frozen=True)
class Variant:
    """Sizes of a model, its task, and the number of steps of backpropagation before Evolution Strategies."""

    task: str
    hidden: int
    layers: int
    steps: int


VARIANTS = {
    "small": Variant("difference", 64, 2, 6000),
    "deep": Variant("difference", 48, 4, 3000),
    "reverse": Variant("reverse", 64, 2, 6000),
}


@dataclass(frozen=True)
class Rows:
    """Questions with their right answers.

    Attributes:
        ids: int64[B, T], question and answer, padded on the right.
        answer: bool[B, T - 1], whether the token after a position belongs to the answer.
        graded: whether a partly right answer earns a share.
    """

    ids: Tensor
    answer: Tensor
    graded: bool

    def __getitem__(self, index: Tensor) -> "Rows":
        return Rows(self.ids[index], self.answer[index], self.graded)


def kind_of(name: str) -> str:
    """Return which of :data:`KINDS` a tensor is of."""
    part = name.split(".")[-1]
    return "norms" if "norm" in part else "embeddings" if part == "embed" else "attention" if part in "qkvo" else "mlp"


class Model:
    """Transformer of the Llama architecture with tied embeddings, as functions of flat weights."""

    def __init__(self, hidden: int, layers: int) -> None:
        self.hidden, self.layers = hidden, layers
        self.shapes: dict[str, tuple[int, ...]] = {"embed": (len(SYMBOLS), hidden), "norm": (hidden,)}
        for k in range(layers):
            self.shapes |= {f"{k}.norm1": (hidden,), f"{k}.norm2": (hidden,)}
            self.shapes |= {f"{k}.{name}": (hidden, hidden) for name in "qkvo"}
            self.shapes |= {f"{k}.gate": (2 * hidden, hidden), f"{k}.up": (2 * hidden, hidden)}
            self.shapes |= {f"{k}.down": (hidden, 2 * hidden)}
        self.size = sum(map(math.prod, self.shapes.values()))

    def tensors(self, weights: Tensor) -> dict[str, Tensor]:
        """View weights[N, size] as one tensor[N, *shape] per name."""
        parts = weights.split([math.prod(shape) for shape in self.shapes.values()], dim=1)
        return {name: part.view(-1, *shape) for (name, shape), part in zip(self.shapes.items(), parts, strict=True)}

    def scales(self, scale: Sequence[float]) -> Tensor:
        """Return float32[size], for each weight the entry of its kind in ``scale``, one per :data:`KINDS`."""
        of = dict(zip(KINDS, scale, strict=True))
        return torch.cat([torch.full((math.prod(s),), float(of[kind_of(name)])) for name, s in self.shapes.items()])

    def logits(self, weights: Tensor, ids: Tensor) -> Tensor:
        """Return float32[N, B, T, V] of N models on tokens[B, T]."""
        w = self.tensors(weights)
        n, (rows, length), per_head = len(weights), ids.shape, self.hidden // HEADS
        turn = torch.arange(length)[:, None] * 10000 ** -(torch.arange(0, per_head, 2) / per_head)
        cos, sin = turn.cos().repeat(1, 2), turn.sin().repeat(1, 2)

        def linear(x: Tensor, name: str) -> Tensor:
            return torch.bmm(x, w[name].transpose(1, 2))

        def norm(x: Tensor, name: str) -> Tensor:
            return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * w[name][:, None]

        def heads(x: Tensor) -> Tensor:
            return x.view(n * rows, length, HEADS, per_head).transpose(1, 2)

        def rotated(x: Tensor) -> Tensor:
            low, high = x.chunk(2, -1)
            return x * cos + torch.cat([-high, low], -1) * sin

        x = w["embed"][:, ids.flatten()]
        for k in range(self.layers):
            y = norm(x, f"{k}.norm1")
            q, key, v = (heads(linear(y, f"{k}.{name}")) for name in "qkv")
            mixed = scaled_dot_product_attention(rotated(q), rotated(key), v, is_causal=True)
            x = x + linear(mixed.transpose(1, 2).reshape(n, rows * length, self.hidden), f"{k}.o")
            y = norm(x, f"{k}.norm2")
            x = x + linear(silu(linear(y, f"{k}.gate")) * linear(y, f"{k}.up"), f"{k}.down")
        return linear(norm(x, "norm"), "embed").view(n, rows, length, -1)

    def initial(self) -> Tensor:
        """Draw weights[1, size]."""
        return torch.cat(
            [
                (torch.randn(shape) * 0.02 if len(shape) == 2 else torch.ones(shape)).flatten()
                for shape in self.shapes.values()
            ]
        )[None]

    def rewards(self, weights: Tensor, rows: Rows) -> Tensor:
        """Return float64[N, B], the reward of each model's greedy answers."""
        with torch.no_grad():
            right = self.logits(weights, rows.ids[:, :-1]).argmax(-1) == rows.ids[:, 1:]
        if not rows.graded:
            return (right | ~rows.answer).all(-1).double()
        leading = (right | ~rows.answer).cummin(-1).values & rows.answer
        return leading.sum(-1).double() / rows.answer.sum(-1)

    def log_likelihood(self, weights: Tensor, rows: Rows) -> Tensor:
        """Return float32[N], the mean log probability of the right answers: a smooth counterpart of the reward."""
        logits = self.logits(weights, rows.ids[:, :-1])
        logs = -cross_entropy(logits.flatten(0, 2), rows.ids[:, 1:].repeat(len(weights), 1).flatten(), reduction="none")
        return (logs.view(len(weights), *rows.answer.shape) * rows.answer).sum(-1).mean(-1)


def encoded(texts: Sequence[tuple[str, str]], graded: bool) -> Rows:
    """Encode pairs of question and answer."""
    length = max(len(question) + len(answer) for question, answer in texts)
    ids = torch.tensor(
        [[SYMBOLS.index(c) for c in (question + answer).ljust(length, ".")] for question, answer in texts]
    )
    answer = [[len(q) <= at + 1 < len(q) + len(a) for at in range(length - 1)] for q, a in texts]
    return Rows(ids, torch.tensor(answer), graded)


def splits(task: str) -> tuple[Rows, Rows]:
    """Return the rows for training and the held-out rows of a task. They are distinct."""
    if task == "reverse":
        draw = random.Random(0)
        texts = [(f"{number:04}>", f"{number:04}"[::-1] + ".") for number in draw.sample(range(10000), 1200)]
        return encoded(texts[:1000], True), encoded(texts[1000:], True)
    pairs = [(a, b) for a in range(20) for b in range(a + 1)]
    parts = [[(f"{a}#{b}=", f"{a - b}.") for a, b in pairs if a % 2 == odd] for odd in (0, 1)]
    return encoded(parts[0], False), encoded(parts[1], False)


def line(task: str, draw: random.Random) -> str:
    """Draw a line of the text that the model learns before Evolution Strategies."""
    if task == "reverse":
        digits = f"{draw.randrange(10000):04}"
        sign = draw.choice("+->")  # "+" copies, "-" reverses
        return digits + sign + (digits[::-1] if sign == "-" or (sign == ">" and draw.random() < 0.4) else digits) + "."
    a, b = sorted(draw.choices(range(20), k=2), reverse=True)
    sign = draw.choice("+-#")
    return f"{a}{sign}{b}={a - b if sign == '-' or (sign == '#' and draw.random() < 0.4) else a + b}."


def load(name: str) -> tuple[Model, Tensor]:
    """Return a variant's model and its weights[1, size], which backpropagation makes at the first call."""
    variant = VARIANTS[name]
    model, path = Model(variant.hidden, variant.layers), FOLDER / f"tiny-{name}.pt"
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        torch.save(trained(model, variant), path)
    return model, torch.load(path, weights_only=True)


def trained(model: Model, variant: Variant) -> Tensor:
    """Train a model by backpropagation."""
    torch.manual_seed(0)
    draw = random.Random(0)
    weights = model.initial().requires_grad_()
    optimizer = torch.optim.AdamW([weights], lr=2e-3)
    for step in range(variant.steps):
        texts = [line(variant.task, draw) for _ in range(128)]
        length = max(map(len, texts))
        ids = torch.tensor([[SYMBOLS.index(c) for c in text.ljust(length, ".")] for text in texts])
        optimizer.param_groups[0]["lr"] = 2e-3 * min(1, step / 100) * (1 - step / variant.steps)
        loss = cross_entropy(model.logits(weights, ids[:, :-1]).flatten(0, 2), ids[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return weights.detach()
