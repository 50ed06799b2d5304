"""Evaluation: `evaluate` compares members, ensembles and other methods; rewards as metrics."""

from hf_rlae.evaluation.likelihood import completion_logps
from hf_rlae.evaluation.loop import evaluate
from hf_rlae.evaluation.results import EvaluationReport, MethodResult

__all__ = ["EvaluationReport", "MethodResult", "completion_logps", "evaluate"]
