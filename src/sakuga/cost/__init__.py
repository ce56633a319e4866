"""The cost model: seconds and bytes of a recipe on a plan, a card and a device, by arithmetic and fitted constants.

A package of its own below the engine, because whoever schedules asks it too: it imports neither torch nor ray.
"""

from sakuga.cost.devices import DEVICES, DeviceSpec, find_device
from sakuga.cost.fits import Fit, advise, check_fits, nearest_fit
from sakuga.cost.footprint import Planned
from sakuga.cost.model import Estimate, estimate

__all__ = [
    "DEVICES",
    "DeviceSpec",
    "Estimate",
    "Fit",
    "Planned",
    "advise",
    "check_fits",
    "estimate",
    "find_device",
    "nearest_fit",
]
