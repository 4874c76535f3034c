"""The trainer of all tasks: state, train step, loop, checkpoints, sharding, evaluators, writers."""
