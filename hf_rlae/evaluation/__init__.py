"""Evaluation: `evaluate` compares members and other methods, `diagnose` says what to do with them; rewards."""

from hf_rlae.evaluation.diagnosis import Diagnosis, diagnose
from hf_rlae.evaluation.likelihood import completion_logps
from hf_rlae.evaluation.loop import evaluate
from hf_rlae.evaluation.results import EvaluationReport, MethodResult

__all__ = ["Diagnosis", "EvaluationReport", "MethodResult", "completion_logps", "diagnose", "evaluate"]
