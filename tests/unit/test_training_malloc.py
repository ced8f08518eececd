"""Freed memory stays in the process: page faults are counted, not timed."""

from __future__ import annotations

import subprocess
import sys

FAULTS = """
import resource
import torch
from reproduce.training.malloc import keep_freed_memory

hidden, targets = torch.ones(950, 4), torch.zeros(950, dtype=torch.long)
words = torch.ones(9000, 4, requires_grad=True)


def step():  # the softmax of a language model: several tensors of 34 MB that live and die within a step
    words.grad = None
    torch.nn.functional.cross_entropy(hidden @ words.T, targets).backward()


def faults(steps_before):
    for _ in range(steps_before):
        step()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        step()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


default = faults(2)
keep_freed_memory()
print(default, faults(12))  # the first steps fetch memory either way, until every tensor has a place
"""


def test_large_tensors_reuse_their_pages() -> None:
    found = subprocess.run([sys.executable, "-c", FAULTS], check=True, capture_output=True, text=True)
    default, kept = map(int, found.stdout.split())
    assert kept * 5 < default
