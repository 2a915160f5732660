"""Rollout: answers to a batch of prompts by a loop of our own over vLLM's model and KV cache.

vLLM's scheduler decides anew for every token what to do, and the GPU waits for it. A rollout needs no decisions: all
prompts are known, answers have a longest length, and nobody reads along. So decoding repeats one CUDA graph, whose
state lives on the device, and Python looks only every few steps which answers have ended.
"""
