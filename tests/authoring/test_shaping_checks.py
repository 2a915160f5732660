"""Checks of shapings by `esplug.testing` and `esplug check`: good ones pass, and each fault fails the right check."""

import logging

import numpy as np
import pytest

from esplug import hookimpl
from esplug.hookspecs import hookspec
from esplug.plugins import loading
from esplug.testing import check_shaping, shaping_checks
from tests.helpers.cli import run_cli
from tests.helpers.plugins import failed


@pytest.mark.parametrize("name", ["z-scores", "z-scores-per-prompt", "centered-ranks", "mean-centered"])
def test_the_built_in_shapings_pass(name) -> None:
    detail = {check.name: check.detail for check in check_shaping(name)}
    assert "all utilities are zero" in detail["equal rewards"]
    assert "no lower utility" in detail["order of rewards"]


def shaping(function) -> object:
    class Shaping:
        @hookimpl
        def shape(self, rewards):
            return function(rewards)

    return Shaping()


def spoil(rewards):
    rewards -= rewards.mean()
    return rewards.mean(axis=1)


ALL = {
    *("2 members, 1 prompt", "2 members, 3 prompts", "3 members, 1 prompt", "16 members, 8 prompts"),
    *("30 members, 200 prompts", "rewards of 0 and 1", "small and large rewards", "equal rewards"),
    *("utilities repeat", "order of rewards"),
}


@pytest.mark.parametrize(
    ("function", "checks", "words"),
    [
        (lambda rewards: rewards, ALL, "it must return float64[N]"),
        (lambda rewards: None, ALL, "it must return float64[N]"),
        (lambda rewards: "abc", ALL, "it must return float64[N]"),
        (lambda rewards: rewards.mean(axis=1) / 0, ALL | {"rewards are left alone"}, "FloatingPointError"),
        (lambda rewards: 1 / 0, ALL | {"rewards are left alone"}, "raised ZeroDivisionError"),
        (lambda rewards: np.full(len(rewards), np.nan), ALL, "not finite"),
        (spoil, {"rewards are left alone"}, "work on a copy"),
        (lambda rewards: np.random.rand(len(rewards)), {"utilities repeat"}, "different utilities"),
    ],
)  # fmt: skip
def test_a_shaping_with_a_fault(function, checks, words) -> None:
    with np.errstate(all="raise"):
        faults = failed(shaping_checks(shaping(function)))
    assert faults.keys() == checks
    assert all(words in fault for fault in faults.values())


def ends(error):
    def function(rewards):
        raise error

    return shaping(function)


def test_only_ctrl_c_ends_the_check() -> None:
    assert failed(shaping_checks(ends(BaseException("over")))).keys() == ALL | {"rewards are left alone"}
    with pytest.raises(KeyboardInterrupt):
        shaping_checks(ends(KeyboardInterrupt()))


def test_an_uninstalled_plugin_gets_no_advice_to_update() -> None:
    (check,) = shaping_checks(object())
    assert "lacks the required hook shape" in check.detail
    assert "pip" not in check.detail


def test_a_deprecated_argument_is_reported_when_the_plugin_loads(monkeypatch, caplog) -> None:
    class Spec:
        @hookspec(firstresult=True, warn_on_impl_args={"rewards": DeprecationWarning("rewards goes, take matrix")})
        def shape(self, rewards): ...

    monkeypatch.setattr(loading, "_SPECS", {**loading._SPECS, "shaping": Spec})
    detail = {check.name: check.detail for check in shaping_checks(shaping(lambda rewards: rewards))}["loads"]
    assert detail == "hooks: shape; rewards goes, take matrix"
    assert "pip" not in caplog.text


def test_debug_shows_tracebacks(monkeypatch, capfd, caplog) -> None:
    logger = logging.getLogger("esplug")
    monkeypatch.setattr(logger, "level", logger.level)
    run_cli(monkeypatch, capfd, "check", "z-scores", "--debug")
    shaping_checks(shaping(lambda rewards: 1 / 0))
    assert "in <lambda>\n" in caplog.text
    assert "ZeroDivisionError: division by zero" in caplog.text


def test_unusual_but_valid_utilities_are_reported() -> None:
    detail = {check.name: check.detail for check in check_shaping(shaping(lambda rewards: 1 - rewards.mean(axis=1)))}
    assert "all rewards are 0: such a batch moves the weights" in detail["equal rewards"]
    assert "is that intended?" in detail["order of rewards"]
