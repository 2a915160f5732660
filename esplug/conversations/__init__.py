"""Conversations of several turns: a task's environment answers back, and engines answer the turns that go on.

Runs in the driver. :mod:`.turns` has the settings; :mod:`.dialogues` turns the replies of graders into the engines'
next jobs. May import :mod:`esplug.engines`, :mod:`esplug.rewards` and the rooms below them.
"""
