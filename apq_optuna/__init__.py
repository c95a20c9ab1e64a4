"""apq_optuna"""
