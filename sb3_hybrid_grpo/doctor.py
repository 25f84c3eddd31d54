"""Runs the doctor: ``python -m sb3_hybrid_grpo.doctor LOGDIR``, see ``sb3_hybrid_grpo.diagnostics.doctor``."""

from sb3_hybrid_grpo.diagnostics import main

if __name__ == "__main__":
    raise SystemExit(main())
