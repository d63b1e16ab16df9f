"""The simulated accelerator and fault injection, for tests without hardware."""
