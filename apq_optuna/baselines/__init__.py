"""What joint search is compared with: HAQ and AMC as samplers of the same space, ProxylessNAS."""

from apq_optuna.baselines.amc import AMCSampler
from apq_optuna.baselines.ddpg import DDPGOptions
from apq_optuna.baselines.haq import HAQSampler
from apq_optuna.baselines.proxyless import ProxylessOptions, search_architecture

__all__ = ["AMCSampler", "DDPGOptions", "HAQSampler", "ProxylessOptions", "search_architecture"]
