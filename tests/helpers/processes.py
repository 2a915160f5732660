"""Processes that a test looks at, which may end at any moment."""

import psutil


def descendants(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.Error:
        return []


def command_of(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def lives(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def mark_of(process: psutil.Process) -> str | None:
    try:
        return process.environ().get("ESPLUG_TEST_MARK") if lives(process) else None
    except psutil.Error:
        return None
