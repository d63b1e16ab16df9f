"""A small engine in plain ``torch.cuda`` style, as it is before the port."""
