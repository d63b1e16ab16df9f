"""The requirements, one file for each thing that is proved."""
