"""A training command for test_fit.py to kill: saves at every step it can; SLOW=1 leaves time for a signal."""

from __future__ import annotations

import os
import sys
import time

import torch
from torch import Tensor

from kotoe.localize.fit import fit
from kotoe.runs import Run
from test_fit import batches, modules, plan


def slowly(step: int) -> Tensor:
    if os.environ.get("SLOW") == "1":
        time.sleep(0.05)
    return batches(step)


if __name__ == "__main__":
    torch.set_num_threads(1)
    with Run(sys.argv[1], {"toy": 1}) as run:
        fit(modules(), plan(save_every_s=0.3), slowly, run, progress=False)
