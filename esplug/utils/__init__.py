"""Helpers that know nothing of esplug's subject: text, console, atomic files, locks, cores, memory and processes.

They run in every process and import no other room.
"""
