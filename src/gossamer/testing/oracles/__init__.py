"""Literal transcriptions of the published procedures: slow, plain and independent of the rest of the library.

Every named method must equal its oracle step by step. Nothing here imports the library's own parts; supports come
from a full sort, the dense gradient from a straight-through forward pass (`torch.func.functional_call` with the
sparse weights as leaves), the update from the real optimizer on the dense weights. The given model is not changed.
Random numbers come in as functions. Modules that keep a second list of their weights (`torch.nn.LSTM` and its like)
cannot be called that way.

All take (model, weights or first masks, ..., make_optimizer, batches, loss_fn) and return a `Trace`; those of learned
methods return a list of `LearnedStep`. `lottery_oracle` trains several times and returns every `Training`.
"""

from ._run import Draw, LossFunction, MakeOptimizer, Newborn, Run, Scope, Step, Tensors, Trace, pick
from .drop_grow import deepr_oracle, rigl_itop_oracle, rigl_oracle, set_oracle, static_oracle
from .fan_in import srigl_oracle
from .learned import LearnedStep, cs_oracle, str_oracle
from .live import Exploit, rewire_oracle, sr_ste_oracle, ste_oracle, topkast_oracle
from .pruning import gmp_oracle, granet_oracle, one_shot_oracle
from .reallocate import dsr_oracle, rebalance_oracle, snfs_oracle
from .tickets import Training, lottery_oracle

__all__ = [
    "Draw",
    "Exploit",
    "LearnedStep",
    "LossFunction",
    "MakeOptimizer",
    "Newborn",
    "Run",
    "Scope",
    "Step",
    "Tensors",
    "Trace",
    "Training",
    "cs_oracle",
    "deepr_oracle",
    "dsr_oracle",
    "gmp_oracle",
    "granet_oracle",
    "lottery_oracle",
    "one_shot_oracle",
    "pick",
    "rebalance_oracle",
    "rewire_oracle",
    "rigl_itop_oracle",
    "rigl_oracle",
    "set_oracle",
    "snfs_oracle",
    "sr_ste_oracle",
    "srigl_oracle",
    "static_oracle",
    "ste_oracle",
    "str_oracle",
    "topkast_oracle",
]
