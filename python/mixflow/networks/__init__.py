"""Networks for couplings, named by what they are made of, so that model files can name them, too.

Each class is a factory: an object that a coupling calls with the numbers of inputs and outputs that it needs, and that
returns a ``torch.nn.Module``. Any other function of these two numbers serves as well, except that a flow with one
cannot be saved.
"""

from .convolutional import ConvNet

__all__ = ["ConvNet"]
