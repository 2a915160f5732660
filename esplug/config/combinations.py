"""Combinations of settings that exclude or require each other. In a message, ``<name>`` stands for a setting's flag."""

from typing import Any

#: Default of ``--early-stopping-metric``.
MAIN_METRIC = "eval/average/reward/mean"


def check_combination(config: Any) -> None:
    """Raise ``ValueError`` if settings of a ``RunConfig``, whose module imports this one, do not go together."""
    for name in ("rank", "members_per_batch"):
        if config.perturbation == "full" and getattr(config, name) is not None:
            raise ValueError(f"<{name}> {getattr(config, name)} is for <perturbation> low-rank; give that too")
    for name in ("sigma", "alpha"):
        end, schedule = getattr(config, f"{name}_end"), getattr(config, f"{name}_schedule")
        if end is not None and schedule == "constant":
            raise ValueError(f"<{name}_end> {end:g} is for <{name}_schedule> linear or cosine; give that too")
    if config.n_vllm_engines_per_gpu > 1 and config.n_gpu_per_vllm_engine > 1:
        raise ValueError("<n_vllm_engines_per_gpu> and <n_gpu_per_vllm_engine> exclude each other; give one of them")
    if config.reward_workers and config.reward_concurrency is not None:
        raise ValueError(
            f"<reward_workers> {config.reward_workers} is for rewards that compute, and <reward_concurrency> for those "
            "that wait for a server; give one of them"
        )
    if config.antithetic and config.population_size % 2:
        raise ValueError("<population_size> must be even with <antithetic> (members come in pairs)")
    if config.profile is not None and config.profile >= config.n_iterations > 0:
        raise ValueError(f"<profile> {config.profile}: the last iteration is {config.n_iterations - 1}")
    if config.max_model_len is not None and config.max_tokens >= config.max_model_len:
        raise ValueError(
            f"<max_tokens> {config.max_tokens} leaves no room for a prompt: <max_model_len> is {config.max_model_len}"
        )
    k, samples = config.pass_k[-1], config.eval_n_samples
    if k > samples:
        raise ValueError(f"<pass_k> {k} needs at least {k} answers per prompt: <eval_n_samples> is {samples}")
    if samples > 1 and config.eval_temperature == 0:
        raise ValueError(
            f"<eval_n_samples> {samples} greedy answers would all be the same; give <eval_temperature>, such as 0.8"
        )
    for name, default in (("early_stopping_metric", MAIN_METRIC), ("early_stopping_min_delta", 0.0)):
        if not config.early_stopping_patience and getattr(config, name) != default:
            raise ValueError(f"<{name}> {getattr(config, name)} is for <early_stopping_patience>; give that too")
    if config.early_stopping_patience and config.n_iterations and not config.eval_freq:
        raise ValueError("<early_stopping_patience> needs evaluations during training; give <eval_freq>, such as 5")
