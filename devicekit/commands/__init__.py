"""The sub-commands of ``devicekit``, one module each."""
