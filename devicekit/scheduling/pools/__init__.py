"""How requests hold the pools of models that are not plain, and the second level of the prefix cache."""
