"""The binaries: flags to dataclass to one library call."""
