"""Sampling on the device: greedy, or with temperature and nucleus (top-p) from uniform numbers that the host draws."""

import numpy as np
import torch

from esplug.rollout.requests import Sampler

_ROWS = 64  # rows at a time, because probabilities take several times as much memory as logits
_CHUNK = 256  # tokens whose probabilities are summed before their running sum is formed


def choose(logits: torch.Tensor, sampler: Sampler, uniforms: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the chosen token of each row, int64[rows], and its largest logit, which is undefined if any is.

    Args:
        logits: [rows, vocabulary].
        uniforms: [rows, 1] in [0, 1); the token is where the running sum of the probabilities exceeds it.
    """
    if sampler.greedy:
        return logits.argmax(dim=-1), logits.amax(dim=-1)
    if len(logits) > _ROWS:
        parts = zip(torch.split(logits, _ROWS), torch.split(uniforms, _ROWS), strict=True)
        tokens, tops = zip(*(choose(part, sampler, numbers) for part, numbers in parts), strict=True)
        return torch.cat(tokens), torch.cat(tops)
    top, likeliest = logits.max(dim=-1)
    shares = torch.softmax(logits.float() / sampler.temperature, dim=-1)
    if sampler.top_p < 1:
        shares = torch.where(shares >= _nucleus(shares, sampler.top_p), shares, 0.0)
    token = _invert(shares, uniforms.to(torch.float64))
    return torch.where(token < logits.shape[1], token, likeliest), top


def uniforms(seed: int, count: int) -> np.ndarray:
    """Return uniform numbers float32[count] in [0, 1) for the tokens of an answer with this seed (Philox4x64-10)."""
    return np.random.Generator(np.random.Philox(key=seed)).random(count, dtype=np.float32)


def _nucleus(shares: torch.Tensor, top_p: float) -> torch.Tensor:
    """Return the largest probability of each row, [rows, 1], at or above which the probabilities sum to ``top_p``.

    Bisects the numbers' bits, whose order is that of the numbers. Equal probabilities stay together.
    """
    low = torch.zeros_like(shares[:, :1]).view(torch.int32)
    high = torch.full_like(low, 0x3F800001)  # just above 1
    for _ in range(30):
        middle = (low + high) // 2
        inside = torch.where(shares >= middle.view(torch.float32), shares, 0.0).sum(
            -1, keepdim=True, dtype=torch.float64
        )
        enough = inside >= top_p
        low, high = torch.where(enough, middle, low), torch.where(enough, high, middle)
    return low.view(torch.float32)


def _invert(shares: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
    """Return the first token at which the running sum of ``shares`` exceeds ``uniforms`` [rows, 1] of the whole sum.

    If there is none, as with NaN, the result is at least the number of tokens.
    """
    rows, count = shares.shape
    padded = torch.nn.functional.pad(shares, (0, -count % _CHUNK)).view(rows, -1, _CHUNK)
    sums = padded.sum(-1, dtype=torch.float64).cumsum(-1)
    target = uniforms * sums[:, -1:]
    chunk = (sums <= target).sum(-1, keepdim=True).clamp(max=sums.shape[1] - 1)
    before = torch.where(chunk > 0, sums.gather(1, (chunk - 1).clamp(min=0)), 0.0)
    inside = padded.gather(1, chunk[..., None].expand(-1, -1, _CHUNK)).squeeze(1)
    running = inside.to(torch.float64).cumsum(-1) + before
    return (chunk * _CHUNK + (running <= target).sum(-1, keepdim=True)).squeeze(1)
