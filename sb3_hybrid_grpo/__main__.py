"""``python -m sb3_hybrid_grpo``: compare Hybrid GRPO with PPO and GRPO on one environment."""

import sys

from sb3_hybrid_grpo.compare import main

if __name__ == "__main__":
    sys.exit(main())
