"""The binaries: from flags to a dataclass to one library call."""
