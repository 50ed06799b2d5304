from .cory.configuration_cory import CoryArguments as CoryArguments
from .cory.configuration_cory import CoryConfig as CoryConfig
from .cory.configuration_cory import CoryRLOOConfig as CoryRLOOConfig
from .cory.ppo import CoryPPOConfig as CoryPPOConfig
from .cory.ppo import CoryPPOTrainer as CoryPPOTrainer
from .cory.trainer import CoryMixin as CoryMixin
from .cory.trainer import CoryRLOOTrainer as CoryRLOOTrainer
from .cory.trainer import CoryTrainer as CoryTrainer
from .rlae.configuration_rlae import RLAEConfig as RLAEConfig
from .rlae.trainer import RLAETrainer as RLAETrainer
from .rlae.weighting_report import WeightingReport as WeightingReport
from .token_ppo.configuration_token_ppo import TokenPPOArguments as TokenPPOArguments
from .token_ppo.configuration_token_ppo import TokenPPOConfig as TokenPPOConfig
from .token_ppo.trainer import TokenPPOTrainer as TokenPPOTrainer

__all__: list[str]
