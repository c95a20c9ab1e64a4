"""What joint search is compared with, as samplers of the same space."""

from apq_optuna.baselines.amc import AMCSampler
from apq_optuna.baselines.ddpg import DDPGOptions
from apq_optuna.baselines.haq import HAQSampler

__all__ = ["AMCSampler", "DDPGOptions", "HAQSampler"]
