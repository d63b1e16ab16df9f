"""What turns a batch into tokens."""
