"""Training and evaluation: loss, optimisers, schedules, the Trainer and its hooks."""
