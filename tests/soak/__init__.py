"""A soak: random environments, recorder options, sinks and faults for as long as you like, and the contract checked."""
