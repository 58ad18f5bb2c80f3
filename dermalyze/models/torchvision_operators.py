"""Lets torchvision be imported beside a build of torch that lacks its compiled operators.

PyPI's torchvision next to a CPU-only torch fails with `operator torchvision::nms does not exist`
(pytorch/vision#9077, #9085), and with it timm.  Import this module before either of them.
"""

import torch

_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_library = None  # kept alive: a collected library takes its operators with it


def define_missing() -> None:
    """Declare `nms` and `qnms` where torchvision's own are missing; nothing here calls them."""
    global _library
    if _library is not None:
        return
    try:
        import torchvision  # noqa: F401
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
        _library = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
        for name in ("nms", "qnms"):
            if not hasattr(torch.ops.torchvision, name):
                _library.define(name + _SCHEMA)  # type: ignore[no-untyped-call]


define_missing()
