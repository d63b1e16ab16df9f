"""devicekit: the device layer under an inference engine."""
