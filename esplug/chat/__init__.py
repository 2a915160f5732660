"""`esplug chat`: a conversation with a trained model and, beside it, its base.

Runs in the driver, with one engine that switches between the weights of both. May import :mod:`esplug.runs` and the
rooms below it.
"""
