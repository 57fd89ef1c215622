"""The autograd Functions around the operators: what is saved, which kernel gives which gradient.

Each `forward` lists its parameters one by one: where nothing is differentiated, torch.compile
counts them to know whether the first is a context.
"""
