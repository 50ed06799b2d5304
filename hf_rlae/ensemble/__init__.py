"""Floor 4: ensembles, their config, cache, outputs and logits processor."""

from hf_rlae.ensemble.cache_ensemble import EnsembleCache
from hf_rlae.ensemble.configuration_ensemble import EnsembleConfig
from hf_rlae.ensemble.custom_generate_files import push_custom_generate, save_custom_generate
from hf_rlae.ensemble.hosted_generate import free_ensembles, generate_with_ensemble
from hf_rlae.ensemble.image_prompts import EnsembleProcessor
from hf_rlae.ensemble.modeling_ensemble import EnsembleForCausalLM
from hf_rlae.ensemble.outputs import EnsembleGenerateBeamOutput, EnsembleGenerateOutput
from hf_rlae.ensemble.processor.processor import EnsembleLogitsProcessor
from hf_rlae.ensemble.tokenizer_ensemble import EnsembleTokenizer

__all__ = [
    "EnsembleCache",
    "EnsembleConfig",
    "EnsembleForCausalLM",
    "EnsembleGenerateBeamOutput",
    "EnsembleGenerateOutput",
    "EnsembleLogitsProcessor",
    "EnsembleProcessor",
    "EnsembleTokenizer",
    "free_ensembles",
    "generate_with_ensemble",
    "push_custom_generate",
    "save_custom_generate",
]
