"""Scoring of one answer: the trace of a conversation with one answer, and the environment's rewards for it."""

from collections.abc import Mapping
from typing import Any

import verifiers
import verifiers.v1 as vf
from verifiers.v1.state import state_cls
from verifiers.v1.utils.decorators import invoke

from esplug import Reward
from esplug_tasks_verifiers.environment import Environment
from esplug_tasks_verifiers.prompts import messages


async def score(environment: Environment, answer: str, row: Mapping[str, Any]) -> Reward:
    """Run the environment's reward functions and metrics on an answer.

    The task, its data and configuration, and the trace are made anew, so that nothing of one answer reaches the next.

    Returns:
        The sum of the weighted rewards. Its metrics are each reward, unweighted, and each metric, by name.

    Raises:
        Exception: what a function of the environment raises.
    """
    task = environment.task(row)
    trace = _trace(task, answer)
    try:
        for hook, base in ((task.setup, vf.Task.setup), (task.finalize, vf.Task.finalize)):
            if hook.__func__ is not base:
                await invoke(hook, {"trace": trace})
        await task.score(trace)
    except vf.TaskError as error:
        if error.__cause__ is None:
            raise
        raise error.__cause__ from None  # the environment's own error, for the label and the traceback
    rewards = {name: reward.score for name, reward in trace.rewards.items() if reward is not None}
    metrics = {
        f"{name}_metric" if name in rewards else name: value
        for name, value in trace.metrics.items()
        if value is not None
    }
    return Reward(trace.reward, metrics=rewards | metrics)


def _trace(task: vf.Task, answer: str) -> vf.Trace:
    prompt = [(message, False) for message in messages(task.data)]
    turns = [*prompt, (vf.AssistantMessage(content=answer), True)]
    trace = vf.Trace(
        verifiers=vf.VersionInfo(version=verifiers.__version__),  # the default asks git for a commit
        task=vf.TraceTask(type=type(task).__name__, data=task.data, key=task.key, hash=task.hash),
        agent=vf.AgentInfo(config=vf.AgentConfig()),
        state=state_cls(type(task))(),
        nodes=[
            vf.MessageNode(parent=number - 1 if number else None, message=message, sampled=sampled)
            for number, (message, sampled) in enumerate(turns)
        ],
        ok=True,
    )
    trace.stop("agent_completed")
    return trace
