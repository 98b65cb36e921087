"""Data by name or by object: what every method of robustkit reads samples from."""

from robustkit.data.loaders import as_data
from robustkit.data.samples import Data, TensorData
from robustkit.data.sources import open_data

__all__ = ["Data", "TensorData", "as_data", "open_data"]
