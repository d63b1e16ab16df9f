"""Every architecture of transformers, tiny and at random: are its tokens the model's own, or is it refused?"""
