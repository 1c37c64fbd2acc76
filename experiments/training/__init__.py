"""The one trainer, and what it trains with: workloads, arms, optimizers, devices, checkpoints, records."""
