"""A soak: check the contract with random environments, recorder options, sinks and faults, for any time."""
