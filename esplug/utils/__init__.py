"""General helpers: text, console, atomic files, locks, cores, memory, processes, nodes of Ray and the Hugging Face Hub.

They run in every process and import no other room but :mod:`esplug.errors`.
"""
