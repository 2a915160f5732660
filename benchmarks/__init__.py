"""Benchmarks. Importing the package hides what a CPU build of torch cannot load, before transformers imports it."""

from esplug.utils.torch_builds import hide_cuda_builds

hide_cuda_builds()
