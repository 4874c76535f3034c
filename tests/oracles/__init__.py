"""Tests against the tools that published scores come from: `make oracles`."""
