"""The data doctor: what is in a data set, what is wrong with it, and how anchors fit its boxes.

`focaldet.check(data)` was a function in version 0.1 and still answers as one.
"""

import sys
import types
import warnings
from typing import Any


class CallablePackage(types.ModuleType):
    """A package that can be called as the function it was named for, with a warning."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The report of `check.check.check_data` for the same arguments."""
        from focaldet.check.check import check_data

        warnings.warn("focaldet.check is now called focaldet.check_data", DeprecationWarning, stacklevel=2)
        return check_data(*args, **kwargs)


sys.modules[__name__].__class__ = CallablePackage
