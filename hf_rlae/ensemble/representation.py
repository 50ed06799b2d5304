"""What `repr` of an ensemble says."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn

if TYPE_CHECKING:
    from hf_rlae.ensemble.modeling_ensemble import EnsembleForCausalLM


def represented(ensemble: EnsembleForCausalLM) -> str:
    """The members, the policy and the most important settings, in a few lines."""
    config = ensemble.config
    settings = [f"span_length={config.span_length_of_policy}", f"mixing={config.mixing!r}"]
    if ensemble.union is not None:
        settings.append(f"grain={ensemble.union.grain!r}")
    lines = [*map(repr, ensemble.members), f"policy={_policy(ensemble.policy)}"]
    lines.append(", ".join([*settings, f"vocab_size={config.vocab_size}"]))
    return "\n".join([f"{type(ensemble).__name__}(", *(f"  {line}," for line in lines), ")"])


def _policy(policy: Any) -> str:
    """A short name: the settings of a policy that has some, the size of a learned one."""
    name = getattr(policy, "__name__", type(policy).__name__)
    if isinstance(policy, nn.Module):
        return f"{name}({sum(p.numel() for p in policy.parameters()):,} parameters)"
    settings = policy.settings() if hasattr(policy, "settings") else {}
    return f"{name}({', '.join(f'{key}={value!r:.60}' for key, value in settings.items())})"
