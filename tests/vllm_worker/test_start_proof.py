"""Proof at the start: what it finds wrong with a model, and what it does then."""

import json
from types import SimpleNamespace
from typing import Any

import pytest

from esplug.errors import UserError
from esplug.vllm_worker.start_proof import load_and_prove

pytest.importorskip("vllm")

NAN = float("nan")


class FakeLLM:
    """An ``LLM`` whose log-probabilities depend on the weights written last, directly or through vLLM's loader."""

    def __init__(self, direct: bool, cpu: bool, outputs: dict[str, dict[str, float]], faults: dict[str, str]) -> None:
        self.way, self.cpu, self.state = "direct" if direct else "reload", cpu, "loaded"
        self.outputs, self.faults, self.calls, self.answers = outputs, faults, [], 0
        config = SimpleNamespace(max_model_len=64, get_vocab_size=lambda: 300)
        self.llm_engine = SimpleNamespace(model_config=config)

    def collective_rpc(self, method: str, args: Any = ()) -> list[Any]:
        self.calls.append(method)
        if method == "es_write_and_check":
            self.state = "master" if args[0] is None else "member"
            return ["", self.faults.get(f"{self.way} {self.state}", "")]
        if method == "es_load_without_places":
            self.way = "reload"
        found = {"es_prepare": self.cpu, "es_load": self.way == "direct", "es_take_undefined": [0, 1]}
        if method == "es_unread":
            return [["a", "b"], ["b", "c"]]
        return [found.get(method)] * 2

    def reset_prefix_cache(self) -> None:
        pass

    def generate(self, prompts: Any, sampling: Any, **_: Any) -> list[Any]:
        (prompt,) = prompts
        ids = prompt["prompt_token_ids"]
        self.answers += 1
        name = self.state if self.answers != 2 else "again"
        value = {"loaded": -1.0, "again": -1.0, "member": -2.0, "master": -1.0} | self.outputs.get(self.way, {})
        entry = dict.fromkeys([*ids, 7], SimpleNamespace(logprob=value[name]))
        answer = SimpleNamespace(token_ids=[7] * sampling.max_tokens, logprobs=[entry] * sampling.max_tokens)
        return [SimpleNamespace(prompt_logprobs=[None, *[entry] * (len(ids) - 1)], outputs=[answer])]


def proved(tmp_path: Any, *arguments: Any) -> FakeLLM:
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["SomeForCausalLM"]}))
    llm = FakeLLM(*arguments)
    assert load_and_prove(llm, SimpleNamespace(model=str(tmp_path))) == ("b",)
    assert llm.state == "master"
    return llm


@pytest.mark.parametrize("direct", [True, False])
@pytest.mark.parametrize("cpu", [True, False])
@pytest.mark.parametrize("member", [-2.0, NAN])
def test_a_model_that_follows_its_weights(direct, cpu, member, tmp_path) -> None:
    way = "direct" if direct else "reload"
    llm = proved(tmp_path, direct, cpu, {way: {"member": member}}, {})
    assert llm.way == way
    assert "es_clear_cache" in llm.calls  # NaN must not stay in the KV cache


@pytest.mark.parametrize("fault", ["direct member", "direct master"])
def test_a_direct_loader_that_is_wrong_is_not_used(fault, tmp_path) -> None:
    assert proved(tmp_path, True, True, {}, {fault: "x is not"}).way == "reload"
    wrong = {"member": -1.0} if fault.endswith("member") else {"master": -1.5}
    assert proved(tmp_path, True, True, {"direct": wrong}, {}).way == "reload"


@pytest.mark.parametrize("direct", [True, False])
@pytest.mark.parametrize(
    ("outputs", "fault", "reason"),
    [
        ({}, {"reload member": "w13 does not change", "direct member": "x"}, "w13 does not change"),
        ({}, {"reload master": "w13 is not as", "direct master": "x"}, "w13 is not as"),
        ({"member": -1.0}, {}, "do not change with the weights"),
        ({"master": -1.0001}, {}, "off by up to 0.0001"),
        ({"master": NAN}, {}, "off by up to inf"),
    ],
)
def test_a_model_that_cannot_be_written_is_refused_in_one_line(direct, outputs, fault, reason, tmp_path) -> None:
    with pytest.raises(UserError) as refused:
        proved(tmp_path, direct, True, {"direct": outputs, "reload": outputs}, fault)
    assert "SomeForCausalLM" in str(refused.value)
    assert reason in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_model_that_answers_with_nan_is_left_to_later_checks(tmp_path) -> None:
    (tmp_path / "config.json").write_text("{}")
    llm = FakeLLM(True, True, {"direct": {"loaded": NAN}}, {})
    assert load_and_prove(llm, SimpleNamespace(model=str(tmp_path))) == ()
    assert "es_write_and_check" not in llm.calls
    assert "es_clear_cache" in llm.calls


@pytest.mark.parametrize(
    ("again", "master", "fine"), [(-1.0, -1.009, True), (-1.0, -1.02, False), (-1.01, -1.02, True)]
)
def test_a_gpu_may_differ_by_as_much_as_the_loaded_model_does(again, master, fine, tmp_path) -> None:
    outputs = {"reload": {"again": again, "master": master}}
    if fine:
        proved(tmp_path, False, False, outputs, {})
    else:
        with pytest.raises(UserError, match="off by up to"):
            proved(tmp_path, False, False, outputs, {})
