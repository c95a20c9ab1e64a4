"""`APQSampler`: proposals for a study, from what its trials and earlier measurements tell."""

from apq_optuna.sampler.sampler import APQSampler

__all__ = ["APQSampler"]
