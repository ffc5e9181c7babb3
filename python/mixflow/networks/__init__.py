"""Networks for couplings that model files can describe.

Each class is a factory: a coupling calls it with the numbers of inputs and outputs that it needs, and it returns a
``torch.nn.Module``. Any other function of these two numbers works as well, except that a flow with one cannot be saved.
"""

from .convolutional import ConvNet

__all__ = ["ConvNet"]
