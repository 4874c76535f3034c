"""The cost of networks: parameters, multiply-adds, time."""
