"""The suite's own test: deliberately faulty backends, each of which one requirement must catch."""
