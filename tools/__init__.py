"""What developers of devicekit run from a checkout: nothing here is installed."""
