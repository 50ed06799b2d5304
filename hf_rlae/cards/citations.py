"""BibTeX entries of the papers that cards cite."""

from __future__ import annotations

RLAE = """@inproceedings{fu-etal-2025-rlae,
  title     = {{RLAE}: Reinforcement Learning-Assisted Ensemble for {LLM}s},
  author    = {Fu, Yuqian and Zhu, Yuanheng and Chai, Jiajun and Yin, Guojun and Lin, Wei and Zhang, Qichao and Zhao, \
Dongbin},
  booktitle = {Proceedings of the 2025 Conference on Empirical Methods in Natural Language Processing},
  year      = {2025},
  eprint    = {2506.00439},
  archivePrefix = {arXiv}
}"""

CORY = """@inproceedings{ma2024cory,
  title     = {Coevolving with the Other You: Fine-Tuning {LLM} with Sequential Cooperative Multi-Agent Reinforcement \
Learning},
  author    = {Ma, Hao and Hu, Tianyi and Pu, Zhiqiang and Liu, Boyin and Ai, Xiaolin and Liang, Yanyan and Chen, Min},
  booktitle = {Advances in Neural Information Processing Systems},
  year      = {2024},
  eprint    = {2410.06101},
  archivePrefix = {arXiv}
}"""

PPO = """@misc{schulman2017ppo,
  title  = {Proximal Policy Optimization Algorithms},
  author = {Schulman, John and Wolski, Filip and Dhariwal, Prafulla and Radford, Alec and Klimov, Oleg},
  year   = {2017},
  eprint = {1707.06347},
  archivePrefix = {arXiv}
}"""
